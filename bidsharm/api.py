"""Harmonizing images from Python: what a notebook or another program needs, without a data set."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ScanError, UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Canonical, Cohort, Execution, Scan, Site, Target
from bidsharm.settings import CONTRASTS, DEFAULT_HARMONIZER
from bidsharm.temporary import temporary_folder

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: An image of nibabel, or the path of one.
ImageLike = nib.spatialimages.SpatialImage | str | Path


@dataclass(frozen=True)
class HarmonizedImage:
    """A harmonized image and what it was made of, all on the grid of the image that was given.

    Parameters
    ----------
    image
        Harmonized intensities, float32, 0 outside the brain.
    mask
        Brain mask, uint8.
    before
        What the method saw: the image as it was given, or without its bias field.
    uncertainty
        Standard deviation of the expected error in the units of ``image``, where the method gives one.
    details
        Numbers of the method, JSON types only.
    warnings
        Sentences that a reader of the image should see.
    """

    image: nib.Nifti1Image
    mask: nib.Nifti1Image
    before: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def figure(self) -> Picture:
        """Return a picture: above slices before, below the same slices after. A notebook shows it."""
        from bidsharm.reports.figures import before_after

        brain = np.asarray(self.mask.dataobj) > 0
        before, after = (np.asarray(each.dataobj, dtype=np.float32) for each in (self.before, self.image))
        return before_after(before, after, brain, np.asarray(self.image.affine, dtype=np.float64))


@dataclass(frozen=True)
class _Prepared:
    """An image in canonical axis order, with its mask, and what it was."""

    native: nib.Nifti1Image
    scan: Scan
    warnings: tuple[str, ...]


def harmonize(
    image: ImageLike,
    target: ImageLike | Sequence[ImageLike] | str = 'canonical',
    *,
    harmonizer: str = DEFAULT_HARMONIZER,
    contrast: str = 'T1w',
    mask: ImageLike | None = None,
    correct_bias: bool = True,
    device: str = 'auto',
    seed: int = 0,
    progress: bool = True,
) -> HarmonizedImage:
    """Harmonize one image.

    The steps are those of ``bidsharm BIDS OUT participant`` but for registration and segmentation: the header and voxels are checked,
    the brain is found (deepbet; an image that comes stripped is taken as it is), N4 corrects the bias field, and the method runs.

    Parameters
    ----------
    image
        Three-dimensional image of a head or a brain, or the path of one. It is not changed.
    target
        ``canonical``, or one image or several of the scanner to aim at. They are prepared like ``image``.
    harmonizer
        A name of ``bidsharm-models list``.
    contrast
        BIDS suffix of the image: ``T1w``, ``T2w``, ``FLAIR`` or ``PDw``.
    mask
        Brain mask of ``image`` on its grid, above 0 inside; found when it is not given.
    correct_bias
        False for images that are corrected already.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    seed
        For methods that draw.
    progress
        Whether to show what is being done.

    Returns
    -------
    HarmonizedImage

    Raises
    ------
    bidsharm.errors.ScanError
        If the image cannot be harmonized; the message says why and what to do.
    bidsharm.errors.UsageError
        If a name is unknown, or the method needs images to learn from (``target=[...]``).

    Examples
    --------
    >>> import bidsharm
    >>> result = bidsharm.harmonize('sub-01_T1w.nii.gz', 'scanner-b_T1w.nii.gz')  # doctest: +SKIP
    >>> result.image.to_filename('harmonized.nii.gz')  # doctest: +SKIP
    >>> result.figure()  # doctest: +SKIP
    """
    from bidsharm.harmonizers.execution import resolve_device
    from bidsharm.harmonizers.native import harmonize_scan
    from bidsharm.imaging.grids import make_image, to_native

    if contrast not in CONTRASTS:
        raise UsageError(f'"{contrast}" is no contrast.', where='contrast', fix=f'Choose from {", ".join(CONTRASTS)}.')  # fmt: skip
    kind = registry.get(harmonizer)
    device = resolve_device(device)
    method = kind(Execution(device=device if kind.card.uses_device else 'cpu', seed=seed))
    references = _listed(target)
    if not references and kind.card.needs_fit:
        raise UsageError(
            f'"{harmonizer}" has to learn what to aim at.', where='target',
            fix='Give images of one scanner: target=[first, second, ...].',
        )  # fmt: skip
    with _Progress(progress, 2 * len(references) + 3) as bar:
        aim: Target = Canonical()
        if references:
            aim = Site('target')
            scans = [_prepare(each, contrast, None, correct_bias, device, bar).scan for each in references]
            scans = [replace(scan, site=aim.label) for scan in scans]
            bar.step('target')
            method.fit(Cohort(scans), target=aim, seed=seed)
        ready = _prepare(image, contrast, mask, correct_bias, device, bar)
        bar.step('harmonization')
        found = harmonize_scan(method, ready.scan, aim)
    scan = ready.scan

    def back(values: NDArray[Any], dtype: type = np.float32) -> nib.Nifti1Image:
        return to_native(make_image(values, scan.affine, dtype), ready.native)

    return HarmonizedImage(
        image=back(np.where(scan.mask, found.image, 0)),
        mask=back(scan.mask, np.uint8),
        before=back(scan.data),
        uncertainty=None if found.uncertainty is None else back(np.where(scan.mask, found.uncertainty, 0)),
        details=dict(found.details),
        warnings=(*ready.warnings, *found.warnings),
    )


def _listed(target: ImageLike | Sequence[ImageLike] | str) -> list[ImageLike]:
    """Return the images of a target, none for the canonical one."""
    if isinstance(target, str) and target == 'canonical':
        return []
    if isinstance(target, (str, Path, nib.spatialimages.SpatialImage)):
        return [target]
    if not target:
        raise UsageError('There is no image in it.', where='target', fix='Give "canonical", or images.')
    return list(target)


# --- Preparation ---


def _prepare(
    image: ImageLike, contrast: str, mask: ImageLike | None, correct: bool, device: str, bar: _Progress
) -> _Prepared:
    """Check an image, find its brain and correct its bias field."""
    from bidsharm.imaging import bias, grids, masks

    with temporary_folder('bidsharm', Path(tempfile.gettempdir())) as folder:
        path, name = _on_disk(image, folder, 'image')
        native = grids.load_checked(path)
        conformed = grids.conform(path)
        data = np.asarray(conformed.image.dataobj, dtype=np.float32)
        affine = np.asarray(conformed.image.affine, dtype=np.float64)
        bar.step('brain mask')
        brain = _brain(data, affine, folder, device) if mask is None else _given_mask(mask, native, folder)
        # what was read lazily has to be there when the folder is gone
        native = nib.Nifti1Image(np.zeros(native.shape[:3], np.uint8), native.affine, native.header)
    doubts = masks.check_brain(brain, affine, name=name)
    bar.step('bias field')
    if correct:
        data = bias.correct_bias(data, brain, affine)
    return _Prepared(native, Scan(data, brain, affine, contrast, name), (*conformed.warnings, *doubts))


def _on_disk(image: ImageLike, folder: Path, name: str) -> tuple[Path, str]:
    """Return the file of an image, written first if it is in memory, and its name for messages."""
    if isinstance(image, (str, Path)):
        return Path(image), Path(image).name
    path = folder / f'{name}.nii'
    try:
        nib.save(image, path)
    except (nib.filebasedimages.ImageFileError, AttributeError, ValueError) as error:
        raise ScanError(f'This is no image that can be written as NIfTI ({error}).', where=name) from None
    return path, name


def _brain(data: NDArray[Any], affine: NDArray[Any], folder: Path, device: str) -> NDArray[np.bool_]:
    """Return the brain: what is left of a stripped image, else what deepbet finds."""
    from bidsharm.imaging import grids, masks
    from bidsharm.imaging.extraction import deepbet_mask

    support = masks.stripped_support(data, affine)
    grids.make_image(data, affine).to_filename(folder / 'conformed.nii')
    deepbet_mask(folder / 'conformed.nii', folder / 'mask.nii', device=device)
    found = np.asarray(grids.open_image(folder / 'mask.nii').dataobj) > 0
    return support if support is not None and masks.is_stripped(support, found) else found


def _given_mask(mask: ImageLike, native: nib.Nifti1Image, folder: Path) -> NDArray[np.bool_]:
    """Return a mask that was given, in canonical axis order."""
    from bidsharm.imaging import grids

    path, name = _on_disk(mask, folder, 'mask')
    given = grids.load_checked(path)
    if not grids.same_grid(given, native):
        raise ScanError(
            'The mask lies on another grid than the image.', where=name, fix='Resample it to the image.'
        )
    return np.asarray(grids.conform(path).image.dataobj) > 0


# --- Progress ---


class _Progress:
    """A bar that goes when all is done; nothing where it is not wanted.

    A notebook shows it as an output that changes: rich's own way there needs ipywidgets, which is often not installed.
    """

    def __init__(self, wanted: bool, steps: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console()
        self._notebook = wanted and console.is_jupyter
        self._shown: Any = None
        self._bar = Progress(console=console, transient=True, disable=not wanted)
        self._task = self._bar.add_task('', total=steps)

    def __enter__(self) -> _Progress:
        if self._notebook:
            from IPython.display import display

            self._shown = display(self._bar, display_id=True)
        else:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._notebook:
            self._shown.update({'text/plain': ''}, raw=True)
        else:
            self._bar.stop()

    def step(self, text: str) -> None:
        """Say what comes now; what came before is done."""
        self._bar.update(self._task, description=text, advance=1, refresh=not self._notebook)
        if self._notebook:
            self._shown.update(self._bar)
