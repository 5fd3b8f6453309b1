"""Measure one scan: what every method made of it, against the scan before and against a reference."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ScanError
from bidsharm.evaluation import calibration, features, metrics, overlap, similarity, travelling
from bidsharm.evaluation.metrics import Mask, Spacing, Volume
from bidsharm.evaluation.study import ORIGINAL, MethodFiles, StudyScan
from bidsharm.imaging import segmentation
from bidsharm.imaging.alignment import Brain, Grid
from bidsharm.imaging.grids import Affine, corner_distance, load_checked, resample, voxel_sizes
from bidsharm.imaging.templates import tissue_priors

#: Brain voxels of a scan that classifiers of intensity learn from and are tried on.
SAMPLE = 100_000
#: Quantiles of the brain that tell a linear classifier about the scanner.
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TISSUE_LABELS = {'csf': 3, 'gm': 1, 'wm': 2}
#: Measures of similarity that compare units.
UNIT_BOUND = ('psnr', 'psnr_fov', 'ssim', 'ssim_slices', 'mae', 'nrmse', 'wasserstein', 'js')
_SIMILARITY = (*UNIT_BOUND, 'pcc', 'gradient_ncc')


@dataclass(frozen=True)
class Loaded:
    """A scan with what is known of it, read once for all methods; all of one shape.

    Parameters
    ----------
    scan
        Its files.
    affine
        Its grid.
    mask
        Brain mask.
    original
        The scan before.
    labels, original_labels
        Tissues that all methods share: the true ones, or those of the scan before; and the latter, once it is segmented.
    reference
        The same head as the target has it.
    lesions
        True lesions.
    prior
        Probabilities of tissues by the template, shape (3, X, Y, Z), once the scan is segmented here.
    """

    scan: StudyScan
    affine: Affine
    mask: Mask
    original: Volume | None = None
    labels: NDArray[np.uint8] | None = None
    original_labels: NDArray[np.uint8] | None = None
    reference: Volume | None = None
    lesions: Mask | None = None
    prior: Volume | None = None

    @property
    def spacing(self) -> Spacing:
        """Voxel size in mm."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Place:
    """Where a scan lies on the common grid.

    Parameters
    ----------
    grid
        The common grid.
    world
        From the world of the scan to that of the common grid.
    mask
        Brain of this scan on the common grid.
    shared
        Brain of every scan of the study on the common grid.
    to_template
        From the world of the common grid to that of the template, size and all.
    """

    grid: Grid
    world: Affine
    mask: Mask
    shared: Mask
    to_template: Affine

    def prior(self, loaded: Loaded) -> Volume:
        """Return the template's tissue probabilities on the grid of a scan, shape (3, X, Y, Z)."""
        priors, affine = _priors()
        onto = self.to_template @ self.world @ loaded.affine
        return np.stack([resample(prior, affine, loaded.mask.shape, onto) for prior in priors])


@dataclass(frozen=True)
class Travelled:
    """The same person in the target scanner, by one method.

    Parameters
    ----------
    common
        The image on the common grid.
    mask
        Its brain there.
    """

    common: Volume
    mask: Mask


@dataclass(frozen=True)
class Trace:
    """What is kept of a harmonized scan for measures over many scans.

    Parameters
    ----------
    scan, person, scanner, method
        Which scan it is.
    row
        Its measures by name.
    values, labels
        Intensities of some brain voxels, and their tissues; both empty where no labels are known.
    quantiles
        Of the brain, at :data:`LEVELS`.
    filters
        Answers of the filter bank in its slices on the common grid, shape (slices, features).
    coarse
        The scan on the common grid in blocks of 6 mm.
    slices, reference_slices
        Slices on the common grid, and those of the reference, in units of the latter, for networks of photographs; empty unless
        asked for.
    """

    scan: str
    person: str
    scanner: str
    method: str
    row: dict[str, float]
    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    quantiles: NDArray[np.float64]
    filters: NDArray[np.float64]
    coarse: NDArray[np.float32]
    slices: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0, 0)))
    reference_slices: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0, 0)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def load_scan(scan: StudyScan) -> Loaded:
    """Read a scan and what is known of it.

    Raises
    ------
    ScanError
        If a file is broken, lies on another grid, or there is no brain.
    """
    first = scan.original or next(iter(scan.methods.values())).image
    image = load_checked(first)
    affine = np.asarray(image.affine, dtype=float)
    shape = image.shape[:3]

    def read(path: Path | None, brain: Mask | None = None) -> Any:
        return None if path is None else read_on(path, affine, shape, brain)

    mask, lesions = read(scan.mask), read(scan.lesions)
    if mask is None:
        pictures = [read(files.image) for files in scan.methods.values()]
        # Most images decide, so that one that a method has spoilt takes nothing away from the others.
        mask = 2 * np.sum([picture != 0 for picture in pictures], axis=0) > len(pictures)
    mask = mask > 0
    if not mask.any():
        if scan.mask:
            raise ScanError('The brain mask is empty.', where=str(scan.mask))
        raise ScanError('There is no mask, and most images of this scan are empty.', where=str(first))
    return Loaded(
        scan, affine, mask, read(scan.original, mask), _labels(read(scan.labels)), None, read(scan.reference, mask),
        None if lesions is None else lesions > 0,
    )  # fmt: skip


def segmented(loaded: Loaded, place: Place, *, given: bool) -> Loaded:
    """Return a scan with the segmentation of what was there before; it also stands in for labels that nobody knows.

    Parameters
    ----------
    loaded
        The scan.
    place
        Where it lies.
    given
        Take segmentations from the data sets instead of making them.
    """
    labels = None
    if not given:
        loaded = replace(loaded, prior=place.prior(loaded))
    if loaded.original is not None:
        labels = labels_of(loaded, ORIGINAL, loaded.original)
    return replace(loaded, original_labels=labels, labels=labels if loaded.labels is None else loaded.labels)


def labels_of(loaded: Loaded, method: str, image: Volume) -> NDArray[np.uint8] | None:
    """Return the tissues of an image: by bidsharm's segmentation, the same for all methods, or as the data set has them."""
    if loaded.prior is not None:
        return segmentation.segment(image, loaded.mask, loaded.prior, loaded.affine).labels
    files = loaded.scan.methods.get(method)
    path = loaded.scan.original_labels if method == ORIGINAL else files.labels if files else None
    return None if path is None else _labels(read_on(path, loaded.affine, loaded.mask.shape))


def read_on(path: Path, affine: Affine, shape: tuple[int, ...], brain: Mask | None = None) -> Volume:
    """Read an image that must lie on a grid; voxels that are not finite, as some programs mark the background, become 0.

    Parameters
    ----------
    path, affine, shape
        The file and the grid.
    brain
        Where every voxel must be finite.

    Raises
    ------
    ScanError
        If it lies elsewhere, is broken, or holds voxels in the brain that are not finite.
    """
    image = load_checked(path)
    if image.shape[:3] != shape or corner_distance(image.affine, affine, shape) > 0.1:
        raise ScanError(
            f'It lies on another grid ({image.shape[:3]} voxels) than the scan ({shape}).',
            where=str(path),
            fix='All files of a scan have to share one grid: resample it.',
        )
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    finite = np.isfinite(data)
    if brain is not None and not finite[brain].all():
        raise ScanError(
            'It holds voxels in the brain that are not finite.',
            where=str(path),
            fix='Look at the image: the method failed there.',
        )
    return np.where(finite, data, np.float32(0))


def as_brain(loaded: Loaded) -> Brain:
    """Return the brain that is aligned for all methods: of the scan before, or of the first method."""
    data = loaded.original
    if data is None:
        data = read_on(next(iter(loaded.scan.methods.values())).image, loaded.affine, loaded.mask.shape)
    return Brain(data, loaded.mask, loaded.affine)


def method_image(loaded: Loaded, method: str) -> Volume | None:
    """Return what a method made of a scan, None where it made nothing of it."""
    if method == ORIGINAL:
        return loaded.original
    files = loaded.scan.methods.get(method)
    return None if files is None else read_on(files.image, loaded.affine, loaded.mask.shape, loaded.mask)


def measure(
    loaded: Loaded,
    method: str,
    image: Volume,
    after: NDArray[np.uint8] | None,
    place: Place,
    travelled: Travelled | None,
    *,
    target: str,
    pictures: bool,
) -> Trace:
    """Measure what one method made of one scan.

    Parameters
    ----------
    loaded
        The scan.
    method
        Name of the method.
    image
        What it made of the scan, on its grid.
    after
        Tissues of that image, if known.
    place
        Where the scan lies on the common grid.
    travelled
        The same person in the target scanner, by the same method; used where the truth is not known on the scan's own grid.
    target
        Scanner at which methods aim, or empty.
    pictures
        Keep slices for networks of photographs.
    """
    files = loaded.scan.methods.get(method)
    common = place.grid.sample(image, loaded.affine, place.world)
    row: dict[str, float] = {}
    if loaded.reference is not None:
        row |= _against_truth(loaded, image, bound=method != ORIGINAL)
    elif travelled is not None:
        both = place.mask & travelled.mask
        row |= _similar(similarity.similarity(travelled.common, common, both, place.grid.spacing))
    row |= _against_before(loaded, image, after)
    if files is not None:
        row |= _of_extras(loaded, image, files)
        if target and loaded.scan.scanner == target and loaded.original is not None:
            row['identity_error'] = travelling.identity_error(loaded.original, image, loaded.mask)
    values, labels = _sample(loaded, image)
    trace = Trace(
        loaded.scan.name, loaded.scan.person, loaded.scan.scanner, method, row, values, labels,
        np.asarray(np.quantile(image[loaded.mask], LEVELS), dtype=np.float64), features.filter_features(common, place.mask, place.grid.spacing),
        coarse(common, place),
    )  # fmt: skip
    return _with_slices(trace, loaded, common, place, travelled) if pictures else trace


def _with_slices(
    trace: Trace, loaded: Loaded, common: Volume, place: Place, travelled: Travelled | None
) -> Trace:
    """Add slices of a scan and of its reference."""
    reference, mask = None, place.mask
    if loaded.reference is not None and trace.method != ORIGINAL:
        reference = place.grid.sample(loaded.reference, loaded.affine, place.world)
    elif travelled is not None:
        reference, mask = travelled.common, place.mask & travelled.mask
    if reference is None:
        return trace
    scale = similarity.reference_scale(reference, mask)
    ours, theirs = (features.slices(scale(part).reshape(mask.shape), mask)[0] for part in (common, reference))
    return replace(trace, slices=ours, reference_slices=theirs)


def coarse(common: Volume, place: Place) -> NDArray[np.float32]:
    """Return a volume of the common grid in blocks of 6 mm, over the brain of all scans."""
    from bidsharm.evaluation.probe import low_resolution

    return np.asarray(low_resolution([common], place.shared, place.grid.spacing)[0])


def volumes_of(labels: NDArray[np.uint8], mask: Mask, spacing: Spacing) -> dict[str, float]:
    """Return volumes of tissues inside a mask, in mL."""
    voxel = float(np.prod(spacing)) / 1000
    return {name: float(((labels == label) & mask).sum()) * voxel for name, label in TISSUE_LABELS.items()}


def _against_truth(loaded: Loaded, image: Volume, *, bound: bool) -> dict[str, float]:
    assert loaded.reference is not None
    found = _similar(similarity.similarity(loaded.reference, image, loaded.mask, loaded.spacing))
    return found if bound else {name: value for name, value in found.items() if name not in UNIT_BOUND}


def _similar(found: similarity.Similarity) -> dict[str, float]:
    return {name: getattr(found, name) for name in _SIMILARITY}


def _against_before(loaded: Loaded, image: Volume, after: NDArray[np.uint8] | None) -> dict[str, float]:
    """Return what was kept of the scan before: edges, segmentations, lesions."""
    row: dict[str, float] = {}
    before = loaded.original
    if before is not None:
        edges = metrics.edge_scores(before, image, loaded.mask, loaded.spacing)
        # Linear maps differ by rounding only, and rounding is no edge.
        row |= {'edges_kept': round(edges.direction, 6), 'new_edges': round(edges.new, 6)}
        if loaded.lesions is not None and loaded.lesions.any():
            white = loaded.mask if loaded.labels is None else (loaded.labels == 2) & ~loaded.lesions
            found = overlap.lesion_contrast(before, image, loaded.lesions, white, loaded.spacing)
            row['lesion_kept'] = found.kept
    if after is not None:
        volumes = volumes_of(after, loaded.mask, loaded.spacing)
        row |= {f'volume_{name}': value for name, value in volumes.items()}
        if loaded.original_labels is not None:
            row |= _overlaps(after, loaded.original_labels, loaded.spacing)
    return row


@cache
def _priors() -> tuple[Volume, Affine]:
    """Return the template's probabilities of tissues at 2 mm, shape (3, X, Y, Z), and their grid."""
    _, image = tissue_priors(step=2)
    return np.moveaxis(np.asarray(image.dataobj, dtype=np.float32), -1, 0), np.asarray(
        image.affine, dtype=float
    )


def _overlaps(after: NDArray[np.uint8], before: NDArray[np.uint8], spacing: Spacing) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, found in overlap.overlap_by_label(after, before, spacing, TISSUE_LABELS).items():
        row |= {
            f'ravd_{name}': found.ravd, f'dice_{name}': found.dice, f'jaccard_{name}': found.jaccard,
            f'hausdorff_{name}': found.hausdorff, f'hausdorff95_{name}': found.hausdorff95,
        }  # fmt: skip
    return row


def _of_extras(loaded: Loaded, image: Volume, files: MethodFiles) -> dict[str, float]:
    """Return measures of what only some methods give: uncertainty, lesions, the way back, time, memory."""
    row: dict[str, float] = {}
    shape = loaded.mask.shape
    if files.seconds is not None:
        row['seconds'] = files.seconds
    if files.peak_gb is not None:
        row['peak_gb'] = files.peak_gb
    if files.returned is not None and loaded.original is not None:
        returned = read_on(files.returned, loaded.affine, shape, loaded.mask)
        row['cycle_error'] = travelling.cycle_error(loaded.original, returned, loaded.mask)
    if files.lesions is not None and loaded.lesions is not None:
        found = overlap.lesion_detection(
            read_on(files.lesions, loaded.affine, shape) > 0, loaded.lesions, loaded.spacing
        )
        row |= {
            'lesion_dice': found.overlap.dice,
            'lesion_f1': found.f1,
            'lesion_ravd': found.overlap.ravd,
            'lesion_false': found.false_rate,
        }
    if files.uncertainty is not None and loaded.reference is not None:
        sigma = read_on(files.uncertainty, loaded.affine, shape, loaded.mask)
        known = calibration.calibration(image - loaded.reference, sigma, loaded.mask)
        row |= {
            'nll': known.nll,
            'coverage95': known.coverage.get(0.95, float('nan')),
            'ece': known.ece,
            'ause': known.ause,
        }
    return row


def _sample(loaded: Loaded, image: Volume) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the same voxels of a scan for every method, and their tissues."""
    if loaded.labels is None:
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.uint8)
    inside = np.flatnonzero(loaded.mask)
    if len(inside) > SAMPLE:
        rng = np.random.default_rng(zlib.crc32(loaded.scan.name.encode()))
        inside = np.sort(rng.choice(inside, SAMPLE, replace=False))
    return image.ravel()[inside], loaded.labels.ravel()[inside]


def _labels(data: Volume | None) -> NDArray[np.uint8] | None:
    """Return tissues only; whatever else a segmentation holds does not count."""
    if data is None:
        return None
    labels = np.rint(data).astype(np.int64)
    return np.where((labels >= 1) & (labels <= 3), labels, 0).astype(np.uint8)
