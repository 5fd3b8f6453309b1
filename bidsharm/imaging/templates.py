"""Templates: the MNI152 that nilearn bundles, always at hand, and TemplateFlow's, looked up before the network is."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.imaging.grids import open_image

#: TemplateFlow's name of the template that nilearn bundles (ICBM 2009a nonlinear symmetric).
BUNDLED = 'MNI152NLin2009aSym'

#: Seconds that a download of a template may take in all; TemplateFlow's own limit is for one answer of its server.
DOWNLOAD_LIMIT_S = int(os.environ.get('BIDSHARM_DOWNLOAD_LIMIT_S', '900'))

_SPACE = re.compile(r'^(?P<name>[A-Za-z0-9]+)(?P<options>(?::[a-z]+-[A-Za-z0-9]+)*)$')


@dataclass(frozen=True)
class Space:
    """A space that results are written in.

    Parameters
    ----------
    name
        ``native``, ``T1w``, or a template's name in TemplateFlow.
    resolution
        TemplateFlow's ``res-`` label, or an empty string.
    cohort
        TemplateFlow's ``cohort-`` label, or an empty string.
    """

    name: str
    resolution: str = ''
    cohort: str = ''

    @property
    def entities(self) -> dict[str, str]:
        """The entities that a file in this space carries."""
        if self.name == 'native':
            return {}
        # TemplateFlow's own way to write a cohort into one label.
        name = f'{self.name}+{self.cohort}' if self.cohort else self.name
        return {'space': name, **({'res': self.resolution} if self.resolution else {})}


@dataclass(frozen=True)
class Template:
    """Files of one template, skull-stripped T1w first."""

    space: Space
    brain: Path
    mask: Path | None = None


def parse_space(text: str) -> Space:
    """Read a space from the command line.

    Examples
    --------
    >>> parse_space('MNI152NLin2009cAsym:res-2')
    Space(name='MNI152NLin2009cAsym', resolution='2', cohort='')

    Raises
    ------
    UsageError
        If it cannot be read.
    """
    match = _SPACE.match(text)
    options = dict(item.split('-', 1) for item in match['options'].split(':') if item) if match else {}
    if not match or not set(options) <= {'res', 'cohort'}:
        raise UsageError(
            f'"{text}" is no output space.',
            where='--output-spaces',
            fix='Write native, T1w, or a TemplateFlow name such as MNI152NLin2009cAsym:res-1.',
        )
    name = {'anat': 'native', 'T1W': 'T1w'}.get(match['name'], match['name'])
    if name in ('native', 'T1w') and options:
        raise UsageError(f'"{text}": {name} takes no options.', where='--output-spaces')
    resolution = options.get('res', '' if name in ('native', 'T1w') else '1')
    return Space(name, resolution.lstrip('0') or resolution, options.get('cohort', ''))


def bundled_files() -> dict[str, Path]:
    """Return the bundled MNI152 files: ``T1w``, ``GM`` and ``WM`` (1 mm, skull-stripped, uint8)."""
    spec = importlib.util.find_spec('nilearn')  # found, not imported: nilearn takes a second to import
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError('nilearn, which brings the offline template, is not installed.')
    folder = Path(next(iter(spec.submodule_search_locations))) / 'datasets' / 'data'
    name = 'mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz'
    return {label: folder / name.format(key) for label, key in (('T1w', 't1'), ('GM', 'gm'), ('WM', 'wm'))}


def tissue_priors(*, step: int = 1) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return the bundled template's brain and its tissue priors.

    Parameters
    ----------
    step
        Keep every ``step``-th voxel (after averaging blocks), so 2 gives 2 mm maps.

    Returns
    -------
    brain, priors
        T1w brain, float32; and a 4-D image (X, Y, Z, 3) of CSF, GM and WM probabilities in [0, 1].
    """
    images = {name: open_image(path) for name, path in bundled_files().items()}
    arrays = {name: np.asarray(image.dataobj, dtype=np.float32) / 255 for name, image in images.items()}
    affine = images['T1w'].affine
    csf = np.where(arrays['T1w'] > 0, np.clip(1 - arrays['GM'] - arrays['WM'], 0, 1), 0)
    priors = np.stack([csf, arrays['GM'], arrays['WM']], axis=-1)
    if step == 1:
        return nib.Nifti1Image(arrays['T1w'], affine), nib.Nifti1Image(priors.astype(np.float32), affine)
    coarse = affine.copy()
    coarse[:3, :3] *= step
    coarse[:3, 3] = affine[:3, 3] + affine[:3, :3] @ np.full(3, (step - 1) / 2)
    brain = _block_mean(arrays['T1w'], step)
    reduced = np.stack([_block_mean(priors[..., k], step) for k in range(3)], axis=-1)
    return nib.Nifti1Image(brain, coarse), nib.Nifti1Image(reduced, coarse)


def _block_mean(data: np.ndarray, step: int) -> np.ndarray:
    shape = [size // step for size in data.shape]
    cut = data[tuple(slice(0, size * step) for size in shape)]
    split = cut.reshape([value for size in shape for value in (size, step)])
    return split.mean(axis=(1, 3, 5)).astype(np.float32)


def find_template(space: Space, *, offline: bool) -> Template:
    """Return the files of a template, from disk where they are, else from TemplateFlow's server.

    The bundled template needs no file but nilearn's. Others are looked for in ``$TEMPLATEFLOW_HOME``
    first, because TemplateFlow's own client takes many seconds to start and needs the network for a file
    that is missing. A file that is there but cannot be read is an error, not a template.

    Raises
    ------
    ConfigurationError
        If the template is not on disk and may not or cannot be downloaded.
    """
    if space.name == BUNDLED:
        if space.resolution not in ('1', '2'):
            raise ConfigurationError(
                f'{BUNDLED} is at hand at res-1 and res-2 only.',
                where=f'--output-spaces {space.name}:res-{space.resolution}',
            )
        return Template(space, bundled_files()['T1w'])
    folder = templateflow_home() / f'tpl-{space.name}'
    if space.cohort:
        folder = folder / f'cohort-{space.cohort}'
    found, why = _look(folder, space), ''
    if found is None and not offline:
        why = _download(space)
        found = _look(folder, space)
    if found is None:
        raise ConfigurationError(
            f'The template {space.name} (res-{space.resolution}) is not in {folder}{why and f", and could not be fetched: {why}"}.',
            where='--output-spaces',
            fix=f'Fetch it once with network: {_fetch_command(space)}, or use {BUNDLED}.',
        )
    return found


def _fetch_command(space: Space) -> str:
    cohort = f", cohort='{space.cohort}'" if space.cohort else ''
    call = f"get('{space.name}', resolution={space.resolution}{cohort}, suffix=['T1w', 'mask'])"
    return f'python -c "from templateflow.api import get; {call}"'


def templateflow_home() -> Path:
    """Return TemplateFlow's folder without importing TemplateFlow; works without HOME."""
    given = os.environ.get('TEMPLATEFLOW_HOME')
    if given:
        return Path(given)
    base = os.environ.get('XDG_CACHE_HOME') or (
        Path(os.environ['HOME']) / '.cache' if 'HOME' in os.environ else ''
    )
    return Path(base or '/tmp') / 'templateflow'


def _look(folder: Path, space: Space) -> Template | None:
    resolution = rf'res-0*{space.resolution}'
    # TemplateFlow marks what it has not fetched yet by files without content.
    files = [
        path
        for path in sorted(folder.glob('*.nii.gz'))
        if re.search(rf'_{resolution}_', path.name) and path.stat().st_size
    ]
    images = [path for path in files if path.name.endswith('_T1w.nii.gz')]
    brains = [path for path in images if '_desc-brain_' in path.name]
    heads = [path for path in images if '_desc-' not in path.name]
    masks = [path for path in files if path.name.endswith('_desc-brain_mask.nii.gz')]
    for path in brains[:1] + heads[:1] + masks[:1]:
        _check_readable(path)
    if brains:
        return Template(space, brains[0], masks[0] if masks else None)
    if heads and masks:
        return Template(space, heads[0], masks[0])
    return None


def _check_readable(path: Path) -> None:
    try:
        if np.asarray(open_image(path).dataobj).size == 0:
            raise ValueError('it is empty')
    except Exception as error:  # noqa: BLE001 - whatever a broken file raises, the user needs its name
        raise ConfigurationError(
            f'The template file cannot be read ({error}).',
            where=str(path),
            fix='Delete it and fetch it again.',
        ) from None


def _download(space: Space) -> str:
    """Let TemplateFlow fetch a template; return why it could not, or nothing."""
    trouble = ['']

    def fetch() -> None:
        try:
            _fetch(space)
        except Exception as error:  # noqa: BLE001 - no network, no such template, no permission: all end in the same advice
            trouble[0] = f'{type(error).__name__}: {error}'.splitlines()[0][:300].rstrip('.: ')

    # A thread that is left behind does not keep the run from ending; a server that drips would.
    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(DOWNLOAD_LIMIT_S)
    return f'it took more than {DOWNLOAD_LIMIT_S} s' if worker.is_alive() else trouble[0]


def _fetch(space: Space) -> None:
    from templateflow import api

    options = {'cohort': space.cohort} if space.cohort else {}
    for query in (
        {'suffix': 'T1w', 'desc': None},
        {'suffix': 'T1w', 'desc': 'brain'},
        {'suffix': 'mask', 'desc': 'brain'},
    ):
        api.get(space.name, resolution=space.resolution, extension='.nii.gz', **options, **query)
