"""Travelling cortical surfaces: people with known thickness, measured at sites that each see it a little differently.

Thickness is a smooth pattern that all people share, a smooth pattern of each person's own, and thinning with age of a known size. A site multiplies
it, adds to it, adds a smooth pattern of its own, and noise. There is no anatomy in it: what it is for is to know what a harmonization has to take away
and what it has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.errors import UsageError
from bidsharm.imaging.icosphere import icosphere, vertex_count
from bidsharm.imaging.surfaces import STRUCTURES
from bidsharm.simulation.dataset import BIDS_VERSION, GENERATOR, TRUTH
from bidsharm.simulation.files import stream, write_bytes, write_json, write_tsv

Floats = NDArray[np.float64]

HEMISPHERES = ('L', 'R')
#: Thickness (mm): mean, and standard deviations of the pattern of all, of a person's pattern, and of a person's mean.
MEAN, SHARED, OWN, BETWEEN = 2.5, 0.3, 0.12, 0.08
#: Thinning with age, and how much it differs over the cortex (standard deviation), mm a year.
AGING, AGING_SPREAD = -0.006, 0.0015
#: Age in the middle, at which thickness is the mean.
MIDDLE_AGE = 50
#: No thickness is less (mm).
LEAST = 0.5
#: Cosine of the radius of the medial wall.
WALL = 0.83
#: Level of the noise that patterns are made from: 162 independent values over a hemisphere.
COARSE = 2
#: What FreeSurfer's spheres are called by.
DENSITY = {3: '642', 4: '3k', 5: '10k', 6: '41k', 7: '164k'}

Progress = Callable[[int, int, str], None]

_README = """\
# Simulated travelling cortical surfaces

Nobody was scanned for this data set. Every participant has a thickness of the cortex at each vertex of fsaverage, and every session is the same
cortex measured at another simulated site. `sites.json` says what each site does to it; `derivatives/truth` holds the thickness itself.

Thickness is 0 on the medial wall, as FreeSurfer writes it. It has the pattern that all people share, one of each person's own, and thins by
{aging:g} mm a year on average.
"""


@dataclass(frozen=True)
class SurfaceSite:
    """What a site does to thickness: ``gain * thickness + offset + pattern + noise``.

    Parameters
    ----------
    label
        Letters and digits.
    gain
        Factor.
    offset
        In mm.
    pattern
        Standard deviation of a smooth pattern over the cortex, in mm.
    noise
        Standard deviation at each vertex, in mm.
    """

    label: str
    gain: float = 1.0
    offset: float = 0.0
    pattern: float = 0.0
    noise: float = 0.05


#: The sites, from the first one on; more are drawn.
SITES = (
    SurfaceSite('A'),
    SurfaceSite('B', gain=1.06, offset=0.1, pattern=0.05, noise=0.08),
    SurfaceSite('C', gain=0.95, offset=-0.1, pattern=0.08, noise=0.06),
    SurfaceSite('D', gain=1.02, offset=-0.2, pattern=0.06, noise=0.1),
)


def smooth_field(rng: np.random.Generator, level: int, coarse: int = COARSE) -> Floats:
    """Return a smooth pattern with mean 0 and standard deviation 1 on an icosphere.

    Noise at a coarse level is brought to finer ones, where each vertex takes the mean of its neighbourhood.

    Parameters
    ----------
    rng
        Random numbers.
    level, coarse
        Of the pattern, and of the noise.
    """
    values = rng.standard_normal(vertex_count(min(coarse, level)))
    for finer in range(min(coarse, level) + 1, level + 1):
        sphere = icosphere(finer)
        values = np.concatenate([values, values[sphere.parents].mean(axis=1)])
        values = values[sphere.ring].mean(axis=1)
    values = values - values.mean()
    return values / values.std()


def medial_wall(level: int, hemisphere: str) -> NDArray[np.bool_]:
    """Return the vertices that are no cortex: a cap that looks to the other hemisphere."""
    side = icosphere(level).vertices[:, 0]
    return (side if hemisphere == 'L' else -side) > WALL


@dataclass(frozen=True)
class Cortex:
    """A person's hemispheres.

    Parameters
    ----------
    label, age, sex
        Who it is.
    thickness
        By hemisphere, in mm, 0 on the medial wall.
    """

    label: str
    age: float
    sex: str
    thickness: dict[str, Floats]


def draw_cortex(seed: int, number: int, label: str, level: int) -> Cortex:
    """Return the thickness of a person, by the seed and the person's number.

    Parameters
    ----------
    seed
        Of the data set; the pattern that all people share belongs to it.
    number, label
        Of the person.
    level
        Of the icosphere.
    """
    rng = stream(seed, 'surface person', number)
    age = float(np.round(rng.uniform(20, 80), 1))
    sex = 'FM'[int(rng.integers(2))]
    mean = BETWEEN * rng.standard_normal()
    thickness = {}
    for hemisphere in HEMISPHERES:
        shared = smooth_field(stream(seed, 'surface shared', hemisphere), level)
        aging = smooth_field(stream(seed, 'surface aging', hemisphere), level)
        own = smooth_field(rng, level)
        years = age - MIDDLE_AGE
        values = MEAN + mean + SHARED * shared + OWN * own + (AGING + AGING_SPREAD * aging) * years
        thickness[hemisphere] = np.where(medial_wall(level, hemisphere), 0, np.maximum(values, LEAST))
    return Cortex(label, age, sex, thickness)


def measure(cortex: Cortex, site: SurfaceSite, hemisphere: str, level: int, seed: int) -> Floats:
    """Return a hemisphere as a site sees it."""
    true = cortex.thickness[hemisphere]
    pattern = smooth_field(stream(seed, 'surface site', site.label, hemisphere), level)
    noise = stream(seed, 'surface scan', cortex.label, site.label, hemisphere).standard_normal(len(true))
    seen = site.gain * true + site.offset + site.pattern * pattern + site.noise * noise
    return np.where(true > 0, np.maximum(seen, LEAST), 0)


def sites_of(count: int, seed: int) -> tuple[SurfaceSite, ...]:
    """Return the first sites, and drawn ones where more are asked for."""
    drawn = []
    for number in range(len(SITES) + 1, count + 1):
        rng = stream(seed, 'surface drawn', number)
        gain, offset, pattern, noise = rng.uniform((0.93, -0.2, 0.02, 0.04), (1.07, 0.2, 0.1, 0.12))
        drawn.append(
            SurfaceSite(f'drawn{number:02d}', *(float(round(x, 4)) for x in (gain, offset, pattern, noise)))
        )
    return (*SITES[:count], *drawn)


def simulate_surfaces(
    out: Path | str,
    *,
    subjects: int = 10,
    sites: Sequence[SurfaceSite] = SITES[:2],
    level: int = 5,
    seed: int = 0,
    travel: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write people whose cortex was measured at several sites, as derivatives in the names of fMRIPrep.

    Parameters
    ----------
    out
        Folder of the data set. It is made where it is missing, and written into as it is.
    subjects
        Number of people, at least 1.
    sites
        Sites with different labels.
    level
        Of fsaverage: 3 to 7 (5 is fsaverage5).
    seed
        Not negative. The same seed gives the same bytes.
    travel
        Whether everybody visits every site; otherwise everybody is seen at one, in turn.
    progress
        Called after every session.

    Raises
    ------
    UsageError
        If the request makes no sense.
    """
    _check(subjects, sites, level, seed)
    out = Path(out)
    _write_descriptions(out, sites)
    rows, done = [], 0
    total = subjects * len(sites) if travel else subjects
    for number in range(1, subjects + 1):
        cortex = draw_cortex(seed, number, f'{number:0{max(2, len(str(subjects)))}d}', level)
        rows.append((f'sub-{cortex.label}', f'{cortex.age:g}', cortex.sex, f'{_mean(cortex):.4f}'))
        _write_maps(out / TRUTH, cortex, '', cortex.thickness, level)
        for site in sites if travel else (sites[(number - 1) % len(sites)],):
            seen = {side: measure(cortex, site, side, level, seed) for side in HEMISPHERES}
            _write_maps(out, cortex, site.label, seen, level)
            done += 1
            if progress:
                progress(done, total, f'sub-{cortex.label}_ses-{site.label}')
    write_tsv(out / 'participants.tsv', ('participant_id', *_COLUMNS), rows)
    write_json(out / 'participants.json', _COLUMNS)
    return out


_COLUMNS: dict[str, Any] = {
    'age': {'Description': 'Simulated age; the cortex thins with it', 'Units': 'year'},
    'sex': {'Description': 'Simulated sex; without any effect', 'Levels': {'F': 'female', 'M': 'male'}},
    'thickness_mm': {'Description': 'True mean thickness of both hemispheres', 'Units': 'mm'},
}


def _mean(cortex: Cortex) -> float:
    both = np.concatenate([cortex.thickness[side] for side in HEMISPHERES])
    return float(both[both > 0].mean())


def _check(subjects: int, sites: Sequence[SurfaceSite], level: int, seed: int) -> None:
    labels = [site.label for site in sites]
    if subjects < 1 or not sites:
        raise UsageError('At least one subject and one site are needed.', where='simulate')
    if len(set(labels)) < len(labels):
        raise UsageError('A site is named twice.', where=', '.join(labels))
    if level not in DENSITY:
        raise UsageError(f'There is no fsaverage of level {level}.', fix='Choose 3 to 7; 5 is fsaverage5.')
    if seed < 0:
        raise UsageError('The seed must not be negative.', where=f'{seed}')


def _write_maps(root: Path, cortex: Cortex, session: str, values: dict[str, Floats], level: int) -> None:
    person, visit = f'sub-{cortex.label}', f'ses-{session}' if session else ''
    folder = root / person / visit / 'anat' if visit else root / person / 'anat'
    for side, numbers in values.items():
        parts = [person, visit, f'hemi-{side}', 'space-fsaverage', f'den-{DENSITY[level]}']
        name = '_'.join([*(part for part in parts if part), 'thickness'])
        meta = nib.gifti.GiftiMetaData({'AnatomicalStructurePrimary': STRUCTURES[side]})
        array = nib.gifti.GiftiDataArray(
            numbers.astype(np.float32),
            intent='NIFTI_INTENT_SHAPE',
            datatype='NIFTI_TYPE_FLOAT32',
            meta=meta,
        )
        write_bytes(folder / f'{name}.shape.gii', nib.gifti.GiftiImage(darrays=[array], meta=meta).to_bytes())
        what = 'as the site sees it' if session else 'as it is'
        write_json(
            folder / f'{name}.json',
            {'Description': f'Simulated thickness of the cortex, {what}', 'Units': 'mm'},
        )


def _write_descriptions(out: Path, sites: Sequence[SurfaceSite]) -> None:
    common: dict[str, Any] = {
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'License': 'CC0',
        'GeneratedBy': [
            {
                'Name': GENERATOR,
                'Version': __version__,
                'Description': 'Travelling cortical surfaces, simulated.',
            }
        ],
    }
    write_json(out / 'dataset_description.json', {'Name': 'Simulated travelling cortical surfaces', **common})
    write_bytes(out / 'README', _README.format(aging=-AGING).encode())
    write_json(out / 'sites.json', {site.label: asdict(site) for site in sites})
    write_bytes(out / '.bidsignore', b'sites.json\n*_thickness.*\n')
    truth = {'Name': 'Truth of the simulated travelling cortical surfaces', **common}
    write_json(out / TRUTH / 'dataset_description.json', truth)
    write_bytes(out / TRUTH / 'README', b'# The thickness that the simulated people have\n')
    write_bytes(out / TRUTH / '.bidsignore', b'*_thickness.*\n')
