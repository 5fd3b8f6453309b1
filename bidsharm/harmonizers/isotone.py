"""`isotone`: a smooth gain, then one strictly increasing curve; nothing that is not in the scan can come out of it.

Networks (:mod:`bidsharm.nn.isotone_model`) look at a scan in voxels of 2 mm and say how its scanner shows a brain: a gain over space, and
a curve that leads from what is left to the contrast of one canonical scanner. Both are applied to the scan at its own
resolution. Since the curve inverts, any other scanner is reached by the curve of a scan of that scanner, backwards.

Where the network has no ground to stand on, robust scaling is applied instead, and the record says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, ScanError
from bidsharm.harmonizers.contract import Canonical, Card, Execution, Harmonized, Map, Scan, Target, Volume
from bidsharm.harmonizers.execution import TileSettings, memory_ladder, with_memory_ladder
from bidsharm.harmonizers.standard import StandardHarmonizer, Values, check_scan, paint, pointwise
from bidsharm.imaging.lowres import LowResolution, look_at

if TYPE_CHECKING:
    from bidsharm.nn.isotone_model import Model, Style

#: Where the models that ship are, one folder for each contrast.
WEIGHTS = Path(__file__).parent.parent / 'weights' / 'isotone'
#: Fewer voxels of 2 mm than this are no brain (50 ml).
LEAST_VOXELS = 6250
#: The network is followed if it expects an error below this part of that of robust scaling. In FLAIR, 0.85 would scale one of seven real scans and
#: follow the other visit of the same person, which sets the two further apart than either way does for both.
CLEARLY_BETTER = {'T1w': 0.85, 'T2w': 0.85, 'FLAIR': 0.9}
#: And if the scan is less likely than this to be no scan of the contrast (``benchmarks/results/doubts.md``). For T2w, 0.5 would refuse one of the eight
#: real scans that the limit was chosen with, and no wrong one that 0.8 lets through.
STRANGEST = {'T1w': 0.5, 'T2w': 0.8, 'FLAIR': 0.5}
#: Units of two scans that differ by less than this (logarithm) are taken for the same.
SAME_UNITS = 0.05


@dataclass(frozen=True)
class _Understood:
    """A scan and what is made of it; without a style, the reason."""

    values: Values
    bright: float
    reason: str
    seen: LowResolution | None = None
    style: Style | None = None


@dataclass(frozen=True)
class _Scaling:
    """A map that changes nothing but the scale."""

    factor: float

    def __call__(self, values: Values) -> Values:
        return values * self.factor


class Isotone(StandardHarmonizer):
    """Map every voxel by a smooth gain and one increasing curve that a network chooses for the scan.

    The canonical contrast is that of one scanner at 3 T; in T1w (MPRAGE) its white matter is 1. For a site or a reference the mean curve of
    its scans is inverted. Contrasts without a model, and scans that the network does not understand, are scaled by their 90th percentile,
    T2w by their median.
    A change that is smaller than its own expected error is not made; against a site or a reference only the curves count.
    """

    card = Card(
        name='isotone',
        title='Smooth gain and one increasing curve, chosen by a network',
        paper='bidsharm, docs/isotone.md.',
        family='lookup',
        uses_device=True,
        memory_gb=2.0,
    )
    #: Brightness, whether the network is followed, offset, scale, heights of the curve.
    standard_size: ClassVar[int] = 24

    def __init__(self, execution: Execution | None = None) -> None:
        super().__init__(execution)
        self._models: dict[str, Model | None] = {}
        self._trained: tuple[dict[str, NDArray[Any]], dict[str, Any]] | None = None

    @classmethod
    def weights_digest(cls) -> str:
        """Return a digest over the networks of all contrasts; what else their cards say does not change an image."""
        from bidsharm.harmonizers.bundle import read_card

        folders = sorted(folder for folder in WEIGHTS.iterdir() if folder.is_dir())
        parts = (f'{folder.name} {read_card(folder)["tensors_sha256"]}\n' for folder in folders)
        return hashlib.sha256(''.join(parts).encode()).hexdigest()

    # --- Networks of others ---

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the standards, and the network that was given in place of the one that ships."""
        arrays, settings = super().state()
        if self._trained is None or not arrays:
            return self._trained or (arrays, settings)
        return {**arrays, **self._trained[0]}, {**settings, 'network': self._trained[1]}

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back standards, or take the network of ``benchmarks/train_isotone.py`` for the contrast in its settings.

        Raises
        ------
        ConfigurationError
            If the numbers are neither.
        """
        network = {
            name: array
            for name, array in arrays.items()
            if name.startswith(('net/', 'judge/', 'unet/', 'aim/'))
        }
        if len(network) < len(arrays) or not network:
            super().restore({name: array for name, array in arrays.items() if name not in network}, settings)
        if network:
            self._take(network, settings.get('network', settings))

    def _take(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Use a network for the contrasts in its settings."""
        from bidsharm.nn.isotone_model import Model

        try:
            model = Model.from_arrays(arrays)
        except RuntimeError as error:
            what = str(error).splitlines()[-1].strip()
            raise ConfigurationError(
                f'The weights are of another network than this version of isotone has ({what}).',
                fix='Train it again with benchmarks/train_isotone.py.',
            ) from None
        self._trained = (dict(arrays), dict(settings))
        self._models = dict.fromkeys(settings['contrasts'], model)

    # --- What is learned ---

    def describe(self, scan: Scan) -> Values:
        """Return brightness, whether the network is followed, offset, scale and curve, shape (24,)."""
        return _described(self._understand(scan))

    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the mean style of the scans that the network understands, if those are more than half."""
        if isinstance(target, Canonical):
            return self._canonical()
        table = np.stack(descriptions)
        followed = table[table[:, 1] > 0]
        if 2 * len(followed) <= len(table):
            return np.concatenate([[table[:, 0].mean(), 0.0], np.zeros(22)])
        return np.concatenate([[table[:, 0].mean()], followed[:, 1:].mean(axis=0)])

    def fixed_standard(self) -> Values | None:
        """Return the style of the canonical scanner."""
        return self._canonical()

    @staticmethod
    def _canonical() -> Values:
        from bidsharm.nn.isotone_model import KNOTS

        return np.concatenate([[1.0, 1.0, 0.0, 1.0], KNOTS])

    def apply(self, values: Values, description: Values, standard: Values) -> Values:
        """Map intensities by the curves alone, as if there were no gain."""
        from bidsharm.nn.isotone_model import KNOTS, increasing

        if not (description[1] and standard[1]):
            return values * (standard[0] / description[0])
        canonical = increasing((values - description[2]) / description[3], KNOTS, description[4:])
        return _from_canonical(canonical, standard)

    # --- One scan ---

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Map one scan to the target.

        Returns
        -------
        Harmonized
            The image; where the network is followed also the standard deviation that is expected of its error; ``details`` tell the
            style, what is expected of it, and which way was taken (``network``, ``robust`` or ``scale``) and why.

        Raises
        ------
        ScanError
            If the scan is unusable, or can only be scaled and has nothing positive to go by.
        MissingNeed
            If the target has to be learned and was not.
        """
        self._check_target(target)
        standard = self._standard_for(scan, target)
        found = self._understand(scan)
        reason = found.reason or ('' if standard[1] else 'most scans of the target could not be understood')
        if found.style is None or found.seen is None or reason:
            return self._only_scaled(scan, found, reason, standard, target)
        mapped, deviation = _map(found.values, found.style, found.seen, scan, standard)
        # Scans of the target have gains of their own, so against a site or a reference only the curves count.
        curves = (
            mapped if isinstance(target, Canonical) else self.apply(found.values, _described(found), standard)
        )
        details = _summary(found)
        span = float(np.subtract(*np.percentile(found.values, [99.5, 0.5])))
        for scaling in self._small_changes(found, standard, target):
            change = float(np.mean(np.abs(curves - scaling(found.values)))) / (span * scaling.factor)
            if change < found.style.expected_error:
                why = 'the change would be smaller than its expected error'
                more = {'way': 'scale', 'reason': why, 'change': change, **vars(scaling)}
                return _scaled(scan, found.values, scaling, {**details, **more})
        return Harmonized(
            paint(scan, mapped), paint(scan, deviation), {'way': 'network', 'reason': '', **details},
            beyond=_beyond(found.style, found.seen, standard),
        )  # fmt: skip

    def _only_scaled(
        self, scan: Scan, found: _Understood, reason: str, standard: Values, target: Target
    ) -> Harmonized:
        """Return a scan that the network is not followed for, with a warning."""
        percent = self._anchor(scan.contrast)[0]
        scaling = self._scaling(found, standard, target)
        if scaling is None:
            raise ScanError(
                f'It can only be scaled ({reason}), and the {percent:.0f}th percentile of the brain, here or in the target, is not above 0.',
                where=scan.name,
                fix='Give a scan whose intensities in the brain are positive.',
            )
        details = {'way': 'robust', 'reason': reason, **vars(scaling), **_summary(found)}
        warning = f'Only scaled, by the {percent:.0f}th percentile: {reason}.'
        return _scaled(scan, found.values, scaling, details, (warning,))

    def _small_changes(self, found: _Understood, standard: Values, target: Target) -> list[_Scaling]:
        """Return what may be done to a scan that is near its target already: nothing; on the way to a site or a reference also scaling."""
        nothing = _Scaling(1.0)
        # Of scans of one scanner some would be scaled and others followed, which would set them apart in the canonical contrast.
        scaling = None if isinstance(target, Canonical) else self._scaling(found, standard, target)
        return [nothing] if scaling is None else [nothing, scaling]

    @staticmethod
    def _scaling(found: _Understood, standard: Values, target: Target) -> _Scaling | None:
        """Return what scaling alone would do to a scan; None where it would turn bright into dark, or has nothing to go by."""
        if not (found.bright > 0 and standard[0] > 0):
            return None
        factor = float(standard[0] / found.bright)
        same = not isinstance(target, Canonical) and abs(np.log(factor)) < SAME_UNITS
        return _Scaling(1.0 if same else factor)

    @staticmethod
    def _anchor(contrast: str) -> tuple[float, float]:
        from bidsharm.nn.isotone_model import anchor

        return anchor(contrast)

    def _understand(self, scan: Scan) -> _Understood:
        values = check_scan(scan)
        percent, level = self._anchor(scan.contrast)
        bright = float(np.percentile(values, percent)) / level
        model = self._model(scan.contrast)
        if model is None:
            return _Understood(values, bright, f'there is no model for {scan.contrast}')
        seen = look_at(scan.data, np.asarray(scan.mask).astype(bool), scan.affine)
        if len(seen.values) < LEAST_VOXELS:
            return _Understood(values, bright, 'there is too little brain')
        style = with_memory_ladder(
            lambda tile: model.to(tile.device).understand(seen), execution=self.execution,
            ladder=memory_ladder(TileSettings(device=self.execution.device), tiles=()),
        )  # fmt: skip
        return _Understood(values, bright, _doubt(style, scan.contrast), seen, style)

    # --- Models ---

    def _model(self, contrast: str) -> Model | None:
        """Return the model of a contrast; None where there is none."""
        if contrast not in self._models:
            from bidsharm.harmonizers.bundle import read_arrays
            from bidsharm.nn.isotone_model import Model

            folder = WEIGHTS / contrast
            found = None
            if folder.is_dir():
                found = Model.from_arrays(read_arrays(folder))
            self._models[contrast] = found
        return self._models[contrast]


def _described(found: _Understood) -> Values:
    """Return what :meth:`Isotone.describe` tells of a scan."""
    if found.style is None or found.reason:
        return np.concatenate([[found.bright, 0.0], np.zeros(22)])
    style = found.style
    return np.concatenate([[found.bright, 1.0, style.offset, style.scale], style.heights])


def _doubt(style: Style, contrast: str) -> str:
    """Return why a style should not be followed; empty when it should."""
    if style.strangeness > STRANGEST.get(contrast, STRANGEST['T1w']):
        return 'the scan is unlike all that the network has learnt from'
    if (
        style.expected_error
        > CLEARLY_BETTER.get(contrast, CLEARLY_BETTER['T1w']) * style.expected_error_robust
    ):
        return 'the network expects no clear gain over robust scaling'
    return ''


def _summary(found: _Understood) -> dict[str, Any]:
    """Return what the sidecar should say of a style."""
    if found.style is None:
        return {}
    style = found.style
    return {
        'expected_error': style.expected_error, 'expected_error_robust': style.expected_error_robust,
        'strangeness': style.strangeness, 'offset': style.offset, 'scale': style.scale, 'curve': style.heights.tolist(),
    }  # fmt: skip


def _scaled(
    scan: Scan, values: Values, scaling: _Scaling, details: dict[str, Any], warnings: tuple[str, ...] = ()
) -> Harmonized:
    """Return a scan of which only the scale is changed."""
    return Harmonized(
        paint(scan, scaling(values)), details=details, warnings=warnings, beyond=pointwise(scaling)
    )


def _beyond(style: Style, seen: LowResolution, standard: Values) -> Map:
    """Return the map of the network for any place: outside its field of view the gain stays what it is at the edge."""

    def beyond(data: Volume, affine: NDArray[np.float64]) -> Volume:
        from bidsharm.nn.isotone_model import field_at

        gain = field_at(style.log_gain, seen, np.ones(np.shape(data), bool), affine)
        canonical = style.canonical(np.asarray(data, np.float64).ravel(), gain)
        return _from_canonical(canonical, standard).reshape(np.shape(data)).astype(np.float32)

    return beyond


def _map(
    values: Values, style: Style, seen: LowResolution, scan: Scan, standard: Values
) -> tuple[Values, NDArray[np.float64]]:
    """Return harmonized intensities, and the standard deviation that is expected of them."""
    from bidsharm.nn.isotone_model import field_at

    mask = np.asarray(scan.mask).astype(bool)
    canonical = style.canonical(values, field_at(style.log_gain, seen, mask, scan.affine))
    error = field_at(style.error, seen, mask, scan.affine)
    mapped = _from_canonical(canonical, standard)
    # An absolute error of e on average is a standard deviation of 1.25 e for Gaussian errors.
    return mapped, 1.2533 * (_from_canonical(canonical + error, standard) - mapped)


def _from_canonical(canonical: Values, standard: Values) -> Values:
    """Return the intensities that a style has for canonical ones."""
    from bidsharm.nn.isotone_model import KNOTS, increasing

    return standard[2] + standard[3] * increasing(canonical, standard[4:], KNOTS)
