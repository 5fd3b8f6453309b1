"""The verdict on one harmonized scan: every check with its number, its limits and what it means."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bidsharm.errors import ScanError, UsageError
from bidsharm.evaluation import distributions, metrics
from bidsharm.evaluation.metrics import NAN, Floats, Mask, Spacing
from bidsharm.imaging.grids import bounding_box, shrink
from bidsharm.imaging.masks import BRAIN_ML, USUAL_BRAIN_ML
from bidsharm.imaging.segmentation import TISSUES, hard_labels

PASS, WARN, FAIL, NOT_AVAILABLE = 'pass', 'warn', 'fail', 'not available'
#: Verdicts from good to bad.
VERDICTS = (PASS, WARN, FAIL)


@dataclass(frozen=True)
class Threshold:
    """The limits of one check.

    Parameters
    ----------
    warn
        A value beyond this needs a look.
    fail
        A value beyond this fails.
    direction
        ``min`` when the value must not be less than the limits, ``max`` when it must not be more.

    Raises
    ------
    UsageError
        If a limit is not a finite number, or a value could fail without a warning.
    """

    warn: float
    fail: float
    direction: Literal['min', 'max'] = 'min'

    def __post_init__(self) -> None:
        if not (math.isfinite(self.warn) and math.isfinite(self.fail)):
            raise UsageError(
                'A QC threshold must be a finite number.', fix=f'Got {self.warn} and {self.fail}.'
            )
        if self._worse(self.warn, self.fail):
            side = 'at least' if self.direction == 'min' else 'at most'
            raise UsageError(
                f'A QC threshold warns at {self.warn:g} but fails at {self.fail:g} already.',
                fix=f'The warning limit must be {side} the failure limit.',
            )

    def judge(self, value: float) -> str:
        """Return ``pass``, ``warn`` or ``fail`` for a value, or ``not available`` for NaN; a limit itself is good."""
        if math.isnan(value):
            return NOT_AVAILABLE
        if self._worse(value, self.fail):
            return FAIL
        return WARN if self._worse(value, self.warn) else PASS

    def _worse(self, value: float, limit: float) -> bool:
        return value < limit if self.direction == 'min' else value > limit


# The limits come from known alterations of skull-stripped scans of two people (1 mm T1w, T2w and FLAIR, and a FLAIR
# averaged to 3 mm slices), segmented before and after with the package's own segmentation. Ranges over the four scans;
# "maps" are linear, gamma 0.5 and 2, matching to another person's histogram, and inversion; "fields" are smooth gains
# with a standard deviation of 10 %; "noise" has 2 % of the range; "blur" is a Gaussian of sigma 1.2 mm; "shift" is
# 1 voxel; "other side" is the mirrored brain: right contrast, wrong anatomy.
#
#                     maps         fields       noise        blur         shift        other side
#   dice_csf          .44 - 1      .76 - .90    .97 - .98    .74 - .85    .70 - .79    .38 - .54
#   dice_gm           .89 - 1      .91 - .95    .98 - .99    .90 - .93    .90 - .94    .83 - .88
#   dice_wm           .95 - 1      .95 - .98    .98 - 1      .93 - .96    .92 - .97    .84 - .94
#   edge_agreement    .99 - 1      1            .96 - .98    .69 - .89    .54 - .77    .08 - .24
#   new_edges         0 - .02      0            .01 - .02    .13 - .27    .29 - .41    .58 - .68
#   ssim              .92 - 1      .97 - .98    .96 - .98    .71 - .89    .58 - .81    .13 - .29
#   local_change, ml  0            0 - .2       0            .3 - 1.5     2.7 - 20     39 - 260
DEFAULT_THRESHOLDS: dict[str, Threshold] = {
    # An atlas holds the segmentation up, so Dice falls little even for the wrong brain; it finds relabelled tissue.
    # CSF is thin at 1 mm: a voxel here or there costs it much, and a plain change of contrast may.
    'dice_csf': Threshold(0.75, 0.40, 'min'),
    'dice_gm': Threshold(0.90, 0.80, 'min'),
    'dice_wm': Threshold(0.92, 0.85, 'min'),
    # Scan-rescan differences of GM and WM volumes are a few per cent: 5 % is an effect that studies look for. CSF
    # moved by up to 25 % (FLAIR 36 %) under mere changes of contrast.
    'ravd_csf': Threshold(0.25, 0.50, 'max'),
    'ravd_gm': Threshold(0.05, 0.15, 'max'),
    'ravd_wm': Threshold(0.05, 0.15, 'max'),
    # Noise and light smoothing pass, blur that can be seen warns, displacement by a voxel fails one of the two.
    'edge_agreement': Threshold(0.90, 0.70, 'min'),
    'new_edges': Threshold(0.10, 0.25, 'max'),
    'ssim': Threshold(0.90, 0.70, 'min'),
    # An inserted ball of 10 mm diameter with a quarter or half of the range gave .5 - .7 ml, one of 20 mm 3.1 - 4.3 ml;
    # the scores over the whole brain hardly move for either.
    'local_change': Threshold(0.3, 3.0, 'max'),
    # A mask that is no brain makes all other checks meaningless. The limits are those of brain extraction.
    'brain_volume_low': Threshold(USUAL_BRAIN_ML[0], BRAIN_ML[0], 'min'),
    'brain_volume_high': Threshold(USUAL_BRAIN_ML[1], BRAIN_ML[1], 'max'),
    # Two people's scans of one protocol were 1 - 2 % of the range apart once scaled. Scans of different scanners,
    # simulated, were 6 %: a distance of 10 % means that harmonization missed its target.
    'target_distance': Threshold(0.10, 0.25, 'max'),
    # A smooth gain with a standard deviation of 10 % left .84 - .91 of the contrast between tissues.
    'cnr_kept': Threshold(0.80, 0.50, 'min'),
    # Eight real scans of three people had .41 - .77, simulated heads .77 - .84 (.56 with a ball of 5 cm of fluid for tissue);
    # a head upside down had .07.
    'template_fit': Threshold(0.30, 0.15, 'min'),
    # Routine slices of T2w and FLAIR leave up to 42 cm² open at the top or at the bottom; a 3-D T1w leaves below 4 cm². At
    # 50 cm² a centimetre of the top is missing, at 100 cm² some 3 cm.
    'cut_off': Threshold(50.0, 100.0, 'max'),
    # White and grey matter of a newborn's T1w are the other way round by a tenth of the range; of a T2w by a half.
    'tissue_order': Threshold(0.0, -0.25, 'min'),
    # The contract: exactly 0 outside the mask.
    'background': Threshold(0.0, 0.0, 'max'),
}

#: No setting can excuse voxels that hold no number.
_FINITE = Threshold(0.0, 0.0, 'max')

#: Checks whose absence is no reason for a second look: there is no target distribution for every method, not everybody has
#: the maps of a template, and no order of tissues holds for every PDw.
OPTIONAL = frozenset({'target_distance', 'template_fit', 'tissue_order'})

#: Voxels (mm) in which the fit of the template is measured.
_FIT_MM = 4.0

#: The tissue that must be the brightest (1) or the darkest (-1) in a contrast.
_EXTREME = {'T1w': ('wm', 1), 'T2w': ('csf', 1), 'FLAIR': ('csf', -1)}


@dataclass(frozen=True)
class _Text:
    """How a check is worded: label, meaning, unit, and why it may be missing."""

    label: str
    meaning: str
    unit: str = ''
    missing: str = 'the harmonized image has one single intensity.'


_NAMES = {'csf': 'CSF', 'gm': 'grey matter', 'wm': 'white matter'}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


_TEXTS: dict[str, _Text] = {
    'finite': _Text(
        'Voxels without a number',
        'How many voxels of the harmonized image are infinite or not a number; there must be none.',
        'voxels',
    ),
    **{
        f'dice_{key}': _Text(
            f'{_sentence(name)} overlap before/after (Dice)',
            f'How well the {name} found before harmonization overlaps with that found after it; 1 is the same.',
            missing=f'no {name} was found before or after.',
        )
        for key, name in _NAMES.items()
    },
    **{
        f'ravd_{key}': _Text(
            f'{_sentence(name)} volume difference',
            f'By which share of its volume the {name} grew or shrank through harmonization.',
            missing=f'no {name} was found before.',
        )
        for key, name in _NAMES.items()
    },
    'edge_agreement': _Text(
        'Edges in place',
        'Whether the borders between tissues run where they ran before, in the same direction; 1 is all of them.',
        missing='the scan before has one single intensity.',
    ),
    'new_edges': _Text(
        'New edges',
        'Share of the edges in the harmonized image that the scan before does not show.',
    ),
    'ssim': _Text(
        'Structural similarity (SSIM)',
        'How alike the scan looks before and after, brightness and contrast aside; 1 is the same.',
    ),
    'local_change': _Text(
        'Largest local change',
        'Volume of the largest place that became brighter or darker than its intensity and its surroundings explain, '
        'as an invented or removed lesion would.',
        'mL',
    ),
    'brain_volume_low': _Text(
        'Brain volume, lower limit',
        'Volume of the brain mask; too little means that brain was cut away.',
        'mL',
    ),
    'brain_volume_high': _Text(
        'Brain volume, upper limit',
        'Volume of the brain mask; too much means that it holds more than brain.',
        'mL',
    ),
    'target_distance': _Text(
        'Distance to the target',
        'Mean distance of the intensities to those of the target, as a share of the target’s range.',
        missing='no distribution of the target is known.',
    ),
    'cnr_kept': _Text('Tissue contrast kept', 'Share of the contrast between two tissues that is left.'),
    'template_fit': _Text(
        'Fit of the template',
        'Share of the differences in intensity that the maps of CSF, grey and white matter explain which registration laid '
        'over the scan; little means that it failed, that the head lies the wrong way round, or that this is no whole brain.',
        missing='no maps were given.',
    ),
    'cut_off': _Text(
        'Brain at the edge of the field of view',
        'Largest area where the brain mask ends because the field of view does; much means that the brain is cut off.',
        'cm²',
    ),
    'tissue_order': _Text(
        'Tissues as bright as they should be',
        'By how much of the range the tissue that must be the brightest or darkest one is; below 0 it is not, as in a scan '
        'of another contrast than its name says, or with inverted intensities.',
        missing='the contrast has no fixed order, or a tissue was not found.',
    ),
    'background': _Text(
        'Background',
        'Largest intensity outside the brain; it must be exactly 0.',
        'arbitrary',
    ),
}


@dataclass(frozen=True)
class _Value:
    """A measured value; NaN with the reason, and a note for the reader."""

    value: float
    reason: str = ''
    note: str = ''


@dataclass(frozen=True)
class _Comparison:
    """Both images cut to the brain. ``broken_*`` says why one cannot be used, or is empty."""

    before: NDArray
    after: NDArray
    mask: Mask
    tissue_before: NDArray
    tissue_after: NDArray
    priors: NDArray | None
    spacing: Spacing
    contrast: str
    broken_before: str
    broken_after: str

    @property
    def broken(self) -> str:
        return self.broken_after or self.broken_before

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000


def assess(
    *,
    before: NDArray,
    after: NDArray,
    mask: NDArray[np.bool_],
    tissue_before: NDArray,
    tissue_after: NDArray,
    spacing: tuple[float, float, float],
    contrast: str,
    priors: NDArray | None = None,
    target_quantiles: ArrayLike | None = None,
    thresholds: Mapping[str, Threshold] | None = None,
) -> dict[str, Any]:
    """Judge one harmonized scan against what went in.

    Parameters
    ----------
    before
        Bias-corrected input, shape (X, Y, Z), in the scanner's units.
    after
        Harmonized output on the same grid, in the target's units.
    mask
        Brain mask, same shape. Where it reaches a face of the volume it counts as cut off by the field of view, so a
        volume that was cropped to the brain must have a margin.
    tissue_before, tissue_after
        Probabilities of CSF, GM and WM from the same segmentation method, shape (3, X, Y, Z), in [0, 1].
    spacing
        Voxel size in mm.
    contrast
        BIDS suffix; only ``tissue_order`` assumes which tissue is bright.
    priors
        Maps of CSF, GM and WM that registration laid over the scan, shape (3, X, Y, Z).
    target_quantiles
        Evenly spaced quantiles of the target's intensities, shape (101,), in the units of ``after``.
    thresholds
        Limits that replace those of :data:`DEFAULT_THRESHOLDS`.

    Returns
    -------
    dict
        JSON types, without NaN and infinity: ``verdict`` (``pass``, ``warn`` or ``fail``), ``checks``, ``measures``,
        ``quantiles`` and ``histogram``. A check that cannot be computed has the value None, the verdict
        ``not available`` and the reason in its meaning; unless it is one of :data:`OPTIONAL`, the scan does not
        pass without it. Intensities of tissues before and after are those of the same voxels, almost pure before.

    Raises
    ------
    ScanError
        If the shapes differ or the mask is empty.
    UsageError
        If a threshold has the name of no check.
    """
    _require_known(thresholds or {})
    limits = {'finite': _FINITE, **DEFAULT_THRESHOLDS, **(thresholds or {})}
    inside = np.asarray(mask, dtype=bool)
    scan = _prepare(before, after, inside, tissue_before, tissue_after, priors, spacing, contrast)
    levels = {
        'before': None if scan.broken_before else distributions.quantiles(scan.before, scan.mask),
        'after': None if scan.broken_after else distributions.quantiles(scan.after, scan.mask),
        'target': _target(target_quantiles),
    }
    found, measures = _measure(scan, levels)
    found['finite'] = _Value(float(np.count_nonzero(~np.isfinite(after))))
    found['background'] = _Value(_largest_outside(after, inside))
    found['cut_off'] = _Value(_area_at_the_edge(inside, scan.spacing))
    checks = [_check(name, found[name], limits[name]) for name in _TEXTS]
    return {
        'verdict': overall(checks),
        'checks': checks,
        'measures': _plain(measures),
        'quantiles': _plain(levels),
        'histogram': _plain(_histograms(scan, levels)),
    }


def counts_against(check: Mapping[str, Any]) -> bool:
    """Say whether a check keeps a scan from passing: it found something, or could not be computed though it had to be."""
    return check.get('verdict') != PASS and _counts(check)


def _counts(check: Mapping[str, Any]) -> bool:
    return check.get('verdict') in VERDICTS or str(check.get('name')) not in OPTIONAL


def meaning_of(name: str) -> str:
    """Return what a check asks, in a sentence; empty for one that there is not."""
    return _TEXTS[name].meaning if name in _TEXTS else ''


def overall(checks: Iterable[Mapping[str, Any]]) -> str:
    """Return the verdict over all checks: the worst one.

    A check that is not available counts as a warning, unless it is one of :data:`OPTIONAL`; so does having no check.

    Parameters
    ----------
    checks
        Mappings with ``name`` and ``verdict``.
    """
    ranks = [
        VERDICTS.index(check['verdict']) if check['verdict'] in VERDICTS else VERDICTS.index(WARN)
        for check in checks
        if _counts(check)
    ]
    return VERDICTS[max(ranks)] if ranks else WARN


def parse_thresholds(mapping: Mapping[str, Mapping[str, float]]) -> dict[str, Threshold]:
    """Read thresholds from a settings file.

    Parameters
    ----------
    mapping
        Name of a check to ``warn`` and ``fail``; one that is left out keeps its default.

    Returns
    -------
    dict
        Only the named checks.

    Raises
    ------
    UsageError
        If a name, a key or a value is not valid.
    """
    _require_known(mapping)
    parsed = {}
    for name, given in mapping.items():
        default = DEFAULT_THRESHOLDS[name]
        numbers = {'warn': default.warn, 'fail': default.fail}
        if not isinstance(given, Mapping) or not set(given) <= set(numbers):
            raise UsageError(
                f'The QC threshold "{name}" is not given by "warn" and "fail" only.',
                fix=f'Write, for example, {name} = {{warn = {default.warn:g}, fail = {default.fail:g}}}.',
            )
        for key, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f'"{key}" of the QC threshold "{name}" is not a number: {value!r}.')
            numbers[key] = float(value)
        try:
            parsed[name] = Threshold(numbers['warn'], numbers['fail'], default.direction)
        except UsageError as error:
            raise UsageError(error.what, where=f'QC threshold "{name}"', fix=error.fix) from error
    return parsed


def _require_known(names: Iterable[str]) -> None:
    for name in names:
        if name not in DEFAULT_THRESHOLDS:
            close = difflib.get_close_matches(str(name), DEFAULT_THRESHOLDS, n=3)
            fix = (
                f'Did you mean {", ".join(close)}?'
                if close
                else f'There are: {", ".join(DEFAULT_THRESHOLDS)}.'
            )
            raise UsageError(f'"{name}" is no QC check.', fix=fix)


def _prepare(
    before: NDArray,
    after: NDArray,
    mask: Mask,
    tissue_before: NDArray,
    tissue_after: NDArray,
    priors: NDArray | None,
    spacing: Sequence[float],
    contrast: str,
) -> _Comparison:
    """Check the shapes and cut everything to the brain."""
    shapes = {np.shape(part) for part in (before, after, mask)}
    maps = [part for part in (tissue_before, tissue_after, priors) if part is not None]
    shapes |= {np.shape(part)[1:] for part in maps}
    if len(shapes) > 1 or any(len(part) != len(TISSUES) for part in maps):
        raise ScanError(
            f'Images before and after, mask and segmentations differ in shape: {sorted(shapes)}.',
            fix='All must lie on the grid of the scan, segmentations with CSF, GM and WM along the first axis.',
        )
    if not mask.any():
        raise ScanError('The brain mask holds no voxel.', fix='Check the brain extraction.')
    box = bounding_box(mask)
    inside = mask[box]

    def broken(data: NDArray, which: str) -> str:
        bad = int(np.count_nonzero(~np.isfinite(data[box][inside])))
        voxels = '1 voxel' if bad == 1 else f'{bad} voxels'
        return f'{which} holds no number at {voxels} inside the mask.' if bad else ''

    cut = (slice(None), *box)
    return _Comparison(
        before=before[box],
        after=after[box],
        mask=inside,
        tissue_before=tissue_before[cut],
        tissue_after=tissue_after[cut],
        priors=None if priors is None else priors[cut],
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        contrast=contrast,
        broken_before=broken(before, 'the scan before'),
        broken_after=broken(after, 'the harmonized image'),
    )


def _measure(
    scan: _Comparison, levels: Mapping[str, Floats | None]
) -> tuple[dict[str, _Value], dict[str, dict[str, float]]]:
    """Return the values of the checks on the brain, and the measures before and after."""
    before, after = (
        distributions.tissue_values(data, scan.tissue_before) for data in (scan.before, scan.after)
    )
    volumes = [
        metrics.tissue_volumes(part, 1000 * scan.voxel_ml) for part in (scan.tissue_before, scan.tissue_after)
    ]
    brain = _Value(np.count_nonzero(scan.mask) * scan.voxel_ml)
    found = {
        **_segmentation_values(scan, volumes),
        **_image_values(scan),
        'brain_volume_low': brain,
        'brain_volume_high': brain,
        'target_distance': _distance(scan, levels),
        'cnr_kept': _contrast_value(scan, before, after),
        'template_fit': _template_fit(scan),
        'tissue_order': _order_of_both(scan.contrast, before, after, levels),
    }
    measures = {
        'before': _measures(before, volumes[0], levels['before']),
        'after': _measures(after, volumes[1], levels['after']),
        'change': _change(scan),
    }
    return found, measures


def _segmentation_values(scan: _Comparison, volumes: Sequence[Mapping[str, float]]) -> dict[str, _Value]:
    overlap = metrics.dice(hard_labels(scan.tissue_before), hard_labels(scan.tissue_after))
    original, harmonized = volumes
    return {
        **{f'dice_{key}': _Value(value) for key, value in overlap.items()},
        **{
            f'ravd_{key}': _Value(metrics.relative_volume_difference(harmonized[key], original[key]))
            for key in original
        },
    }


def _image_values(scan: _Comparison) -> dict[str, _Value]:
    names = ('edge_agreement', 'new_edges', 'ssim', 'local_change')
    if scan.broken:
        return {name: _Value(NAN, scan.broken) for name in names}
    edges = metrics.edge_scores(scan.before, scan.after, scan.mask, scan.spacing)
    similarity = metrics.ssim(scan.before, scan.after, scan.mask)
    local = metrics.local_change(scan.before, scan.after, scan.mask, scan.spacing)
    values = (edges.direction, edges.new, similarity, local)
    return {name: _Value(value) for name, value in zip(names, values, strict=True)}


def _largest_outside(after: NDArray, mask: Mask) -> float:
    return float(np.abs(np.where(mask | ~np.isfinite(after), 0, after)).max())


def _area_at_the_edge(mask: Mask, spacing: Spacing) -> float:
    """Return the largest area of a mask on a face of the volume, in cm²."""
    area = [spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]]
    faces = [
        np.count_nonzero(np.take(mask, index, axis=axis)) * area[axis]
        for axis in range(3)
        for index in (0, -1)
    ]
    return float(max(faces)) / 100


def _template_fit(scan: _Comparison) -> _Value:
    """Return how much of the variance of the intensities before the maps of the template explain (R²).

    Both are averaged to voxels of :data:`_FIT_MM` first: maps of an average brain know no single fold.
    """
    if scan.priors is None or scan.broken_before:
        return _Value(NAN, scan.broken_before)
    affine = np.diag([*scan.spacing, 1.0])
    share = shrink(scan.mask, affine, _FIT_MM)[0]

    def averaged(data: NDArray) -> NDArray[np.floating]:
        return shrink(np.where(scan.mask, data, 0), affine, _FIT_MM)[0][share > 0.5] / share[share > 0.5]

    low, high = np.percentile(scan.before[scan.mask], [1, 99])
    values = averaged(np.clip(scan.before, low, high)).astype(np.float64)
    values -= values.mean() if values.size else 0
    total = float((values**2).sum())
    if not total > 0:
        return _Value(NAN, 'the scan before has one single intensity.')
    maps = np.column_stack([np.ones(values.size), *(averaged(part) for part in scan.priors)])
    weights, *_ = np.linalg.lstsq(maps, values, rcond=None)
    return _Value(1 - float(((values - maps @ weights) ** 2).sum()) / total)


def _order_of_both(
    contrast: str,
    before: Mapping[str, Floats],
    after: Mapping[str, Floats],
    levels: Mapping[str, Floats | None],
) -> _Value:
    """Return the order of tissues in the scan, and where that is as it should be, in the harmonized image if it is worse there.

    Every other check allows a contrast that was turned round.
    """
    first, second = (
        _tissue_order(contrast, part, levels[side]) for part, side in ((before, 'before'), (after, 'after'))
    )
    if first.value >= 0 and second.value < first.value:
        turned = 'This is the harmonized image; the scan before has the right order.'
        return replace(second, note=turned if second.value < 0 else '')
    return first


def _tissue_order(contrast: str, before: Mapping[str, Floats], levels: Floats | None) -> _Value:
    """Return by which share of the range the extreme tissue of a contrast lies beyond the two others."""
    if contrast not in _EXTREME or levels is None or not levels[99] > levels[1]:
        return _Value(NAN)
    extreme, sign = _EXTREME[contrast]
    peaks = {key: sign * float(np.median(part)) for key, part in before.items() if part.size}
    others = [peak for key, peak in peaks.items() if key != extreme]
    if extreme not in peaks or len(others) < 2:
        return _Value(NAN)
    return _Value((peaks[extreme] - max(others)) / float(levels[99] - levels[1]))


def _target(target_quantiles: ArrayLike | None) -> Floats | None:
    """Return the target's 101 percentiles, or None when they describe no distribution."""
    if target_quantiles is None:
        return None
    levels = np.asarray(target_quantiles, dtype=np.float64).ravel()
    if levels.size < 2 or not np.isfinite(levels).all():
        return None
    return np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, levels.size), levels)


def _distance(scan: _Comparison, levels: Mapping[str, Floats | None]) -> _Value:
    after, target = levels['after'], levels['target']
    if target is None or not target[99] > target[1]:
        return _Value(NAN)
    if after is None:
        return _Value(NAN, scan.broken_after)
    return _Value(distributions.wasserstein(after, target) / float(target[99] - target[1]))


def _contrast_value(scan: _Comparison, before: Mapping[str, Floats], after: Mapping[str, Floats]) -> _Value:
    if scan.broken:
        return _Value(NAN, scan.broken)
    ratio, pair = metrics.contrast_kept(before, after)
    if pair is None:
        return _Value(NAN, f'no two tissues differ clearly in this {scan.contrast}.')
    return _Value(
        ratio, note=f'Of all tissues that differ in this {scan.contrast}, {_pair(pair)} kept least.'
    )


def _pair(pair: tuple[str, str]) -> str:
    return ' and '.join(_NAMES[key] for key in pair)


def _check(name: str, found: _Value, threshold: Threshold) -> dict[str, Any]:
    """Put one check into plain types and words."""
    text = _TEXTS[name]
    value = found.value if math.isfinite(found.value) else NAN
    meaning = text.meaning if not found.note else f'{text.meaning} {found.note}'
    if math.isnan(value):
        meaning = f'{text.meaning} Not available: {found.reason or text.missing}'
    return {
        'name': name,
        'label': text.label,
        'value': _plain(value),
        'unit': text.unit,
        'warn': threshold.warn,
        'fail': threshold.fail,
        'direction': threshold.direction,
        'verdict': threshold.judge(value),
        'meaning': meaning,
    }


def _measures(
    values: Mapping[str, Floats], volumes: Mapping[str, float], levels: Floats | None
) -> dict[str, float]:
    """Return the measures of one side; ``levels`` is None when its intensities cannot be used."""
    known = values if levels is not None else {key: part[:0] for key, part in values.items()}
    peaks = {key: float(np.median(part)) if part.size else NAN for key, part in known.items()}
    return {
        **{f'volume_{key}_ml': volume for key, volume in volumes.items()},
        'cnr_gm_wm': metrics.cnr(known),
        'cjv': metrics.cjv(known),
        'snr_wm': metrics.snr(known['wm']),
        'snr_gm': metrics.snr(known['gm']),
        **{f'peak_{key}': peak for key, peak in peaks.items()},
        'p90': NAN if levels is None else float(levels[90]),
    }


def _change(scan: _Comparison) -> dict[str, float]:
    if scan.broken:
        return {'p95_abs': NAN, 'share_changed': NAN}
    return metrics.change_summary(metrics.change_map(scan.before, scan.after, scan.mask), scan.mask)


def _histograms(scan: _Comparison, levels: Mapping[str, Floats | None]) -> dict[str, Any]:
    """Return the three histograms; that of the target has the bins of the output, which it is drawn over."""
    drawn: dict[str, distributions.Histogram | None] = {'before': None, 'after': None, 'target': None}
    if levels['before'] is not None:
        drawn['before'] = distributions.histogram(scan.before, scan.mask)
    after, target = levels['after'], levels['target']
    ends = [] if target is None else [(float(target[1]), float(target[99]))]
    if after is not None:
        low, high = np.quantile(scan.after[scan.mask], distributions.HISTOGRAM_SPAN)
        ends.append((float(low), float(high)))
    if ends:
        shared = distributions.widened(min(low for low, _ in ends), max(high for _, high in ends))
        if after is not None:
            drawn['after'] = distributions.histogram(scan.after, scan.mask, range=shared)
        if target is not None:
            drawn['target'] = distributions.histogram_of_quantiles(target, np.linspace(*shared, 129))
    return {
        which: None if part is None else {'edges': part.edges, 'density': part.density}
        for which, part in drawn.items()
    }


def _plain(value: Any) -> Any:
    """Return JSON types only: None instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
