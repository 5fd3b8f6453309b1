"""The look of a protocol from its acquisition parameters: a ridge regression to the style codes of the protocols of a training.

Signal equations make the contrast of a scan a smooth function of repetition, echo and inversion time, flip angle and field. A style code
describes this contrast, so the codes of a few protocols tell, roughly, which code another protocol would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError

if TYPE_CHECKING:
    from bidsharm.harmonizers.contract import Acquisition
    from bidsharm.training.volumes import TrainingVolume

Values = NDArray[np.float64]
Style = dict[str, NDArray[np.float32]]

#: Acquisition parameters as BIDS calls them, and their units.
PARAMETERS = {
    'RepetitionTime': 's', 'EchoTime': 's', 'InversionTime': 's', 'FlipAngle': 'degrees', 'MagneticFieldStrength': 'T',
}  # fmt: skip
#: Those that every protocol has; without inversion there is no InversionTime.
NEEDED = ('RepetitionTime', 'EchoTime', 'FlipAngle', 'MagneticFieldStrength')
#: Fewer protocols tell nothing about others.
FEWEST = 6
#: Scans of a protocol that its look is taken from, at most.
SCANS = 10
#: How far a parameter may lie beyond those of the training, as a part of the nearest of them.
BEYOND = 0.2
#: Below this R², looks of other protocols were predicted poorly.
WEAK = 0.5
#: Penalties to choose from; features have a standard deviation of 1.
_PENALTIES = tuple(float(10.0**power) for power in np.linspace(-2, 2, 9))
_RIDGE = ('mean', 'scale', 'coefficients', 'intercept')
#: Place of the feature that says whether there is an inversion.
_INVERTED = 4


def protocol_of(parameters: Mapping[str, float]) -> tuple[float, ...] | None:
    """Return what tells a protocol from others: its parameters to three digits, 0 for none; None where one is missing."""
    if not all(name in parameters for name in NEEDED):
        return None
    return tuple(float(f'{parameters.get(name, 0.0):.3g}') for name in PARAMETERS)


def features(protocols: Sequence[tuple[float, ...]]) -> Values:
    """Return what looks are predicted from, shape (protocols, 9); NaN for the logarithm of an inversion time that is not there.

    Logarithms of repetition time, echo time and field, for signals depend on ratios to relaxation times; the flip angle; whether there is an inversion,
    and the logarithm of its time. With an inversion the repetition time counts from one inversion to the next, so repetition time, flip angle and field stand
    there once more for protocols that have one, 0 for others.
    """
    repetition, echo, inversion, flip, tesla = np.array(protocols, float).T
    there = inversion > 0
    time = np.where(there, np.log(np.where(there, inversion, 1.0)), np.nan)
    again = (there * column for column in (np.log(repetition), flip, np.log(tesla)))
    return np.stack(
        [np.log(repetition), np.log(echo), flip, np.log(tesla), there.astype(float), time, *again], axis=1
    )


@dataclass(frozen=True)
class Ridge:
    """A linear map of standardized features, its penalty chosen by leaving out one protocol at a time (scikit-learn's ``RidgeCV``).

    Parameters
    ----------
    mean, scale
        Of the features, shape (9,).
    coefficients, intercept
        Shape (numbers, 9) and (numbers,).
    """

    mean: Values
    scale: Values
    coefficients: Values
    intercept: Values

    @classmethod
    def fit(cls, x: Values, y: Values) -> Ridge:
        """Fit features, shape (n, 9), NaN where one is unknown, to numbers, shape (n, numbers)."""
        from sklearn.linear_model import RidgeCV

        known = np.isfinite(x)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, x, 0).sum(axis=0) / count
        deviation = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(axis=0) / count)
        # A feature that is the same everywhere gets no weight.
        scale = np.where(deviation > 1e-6, deviation, 1.0)
        found = RidgeCV(alphas=_PENALTIES).fit(_standardized(x, mean, scale), y)
        return cls(mean, scale, np.atleast_2d(found.coef_), np.atleast_1d(found.intercept_))

    def __call__(self, x: Values) -> Values:
        """Return the numbers for features."""
        return np.asarray(_standardized(x, self.mean, self.scale) @ self.coefficients.T + self.intercept)


def _standardized(x: Values, mean: Values, scale: Values) -> Values:
    """Return features with mean 0 and deviation 1; one that is unknown counts as usual."""
    return np.nan_to_num((x - mean) / scale)


def left_out_r2(x: Values, y: Values) -> float:
    """Return how well the numbers of each protocol are predicted from the others.

    Parameters
    ----------
    x, y
        Features and numbers of the protocols, shapes (n, 9) and (n, numbers).

    Returns
    -------
    float
        R²: 1 where all are met, 0 where the mean of the others would do as well, below 0 where it would do better. Squared errors of all numbers are added.
    """
    error = spread = 0.0
    for index in range(len(x)):
        rest = np.arange(len(x)) != index
        error += float(((Ridge.fit(x[rest], y[rest])(x[[index]])[0] - y[index]) ** 2).sum())
        spread += float(((y[rest].mean(axis=0) - y[index]) ** 2).sum())
    return 1 - error / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class AcquisitionModel:
    """Which style a protocol has, for one contrast.

    Parameters
    ----------
    ridge
        The regression.
    low, high
        Smallest and largest of each of :data:`PARAMETERS` in the training, where it is there, shape (5,); 0 for an inversion time that no protocol has.
    parts
        Means of all parts of the style over the protocols.
    look
        The parts that are predicted; the others stay at their means.
    protocols
        Number of protocols.
    r2
        :func:`left_out_r2`.
    unit
        Median intensity of the training that the networks see as 1.
    """

    ridge: Ridge
    low: Values
    high: Values
    parts: Style
    look: tuple[str, ...]
    protocols: int
    r2: float
    unit: float

    def style(self, parameters: Mapping[str, float]) -> Style:
        """Return the style of a protocol."""
        protocol = protocol_of(parameters)
        assert protocol is not None
        numbers, found, first = self.ridge(features([protocol]))[0], dict(self.parts), 0
        for name in self.look:
            part = self.parts[name]
            found[name] = numbers[first : first + part.size].reshape(part.shape).astype(np.float32)
            first += part.size
        return found

    def doubts(self, parameters: Mapping[str, float]) -> tuple[str, ...]:
        """Return in sentences why the style of a protocol may be wrong."""
        found = []
        if self.r2 < WEAK:
            found.append(
                f'Looks of protocols that were left out of the training were predicted poorly from their acquisition parameters: R² {self.r2:.2f} over '
                f'{self.protocols} protocols (1 is perfect, 0 no better than the mean look).'
            )
        inverted = float(self.ridge.mean[_INVERTED])  # share of the protocols
        if 'InversionTime' in parameters and inverted == 0:
            found.append('The target has an InversionTime, and no protocol of the training had one.')
        if 'InversionTime' not in parameters and inverted == 1:
            found.append('The target has no InversionTime, and every protocol of the training had one.')
        for (name, unit), low, high in zip(PARAMETERS.items(), self.low, self.high, strict=True):
            value = parameters.get(name, 0.0)
            if value and high and not low * (1 - BEYOND) <= value <= high * (1 + BEYOND):
                found.append(
                    f'The {name} of the target, {value:g} {unit}, lies beyond those of the training, {low:g} to {high:g} {unit}.'
                )
        return tuple(found)


@dataclass
class AcquisitionModels:
    """What a method knows of acquisition parameters, by contrast.

    Parameters
    ----------
    protocols
        Number of protocols in the training.
    models
        The regressions, where there were enough of them.
    """

    protocols: dict[str, int] = field(default_factory=dict)
    models: dict[str, AcquisitionModel] = field(default_factory=dict)

    @classmethod
    def learn(
        cls,
        volumes: Sequence[TrainingVolume],
        style_of: Callable[[Sequence[TrainingVolume]], Style],
        look: tuple[str, ...],
    ) -> AcquisitionModels:
        """Learn from all volumes of a training.

        Parameters
        ----------
        volumes
            Those without acquisition parameters are left out.
        style_of
            Gives the style of some volumes of one contrast.
        look
            The parts of the style that are to be predicted.
        """
        learnt = cls()
        for contrast in sorted({volume.contrast for volume in volumes}):
            groups: dict[tuple[float, ...], list[TrainingVolume]] = {}
            some = [volume for volume in volumes if volume.contrast == contrast]
            for volume in some:
                if (protocol := protocol_of(volume.acquisition)) is not None:
                    groups.setdefault(protocol, []).append(volume)
            learnt.protocols[contrast] = len(groups)
            if len(groups) >= FEWEST:
                styles = [style_of(_spread(group)) for group in groups.values()]
                unit = float(np.median([volume.unit for volume in some]))
                learnt.models[contrast] = learn_model(list(groups), styles, look, unit)
        return learnt

    def model(self, target: Acquisition, method: str) -> AcquisitionModel:
        """Return the regression for a target.

        Parameters
        ----------
        target
            Acquisition parameters and their contrast.
        method
            Name of the method, for messages.

        Raises
        ------
        UsageError
            If there is none for this contrast, or parameters are missing.
        """
        if target.contrast not in self.models:
            count = self.protocols.get(target.contrast, 0)
            raise UsageError(
                f'This {method} cannot tell a look from acquisition parameters: it was trained on {count} protocols of {target.contrast} whose parameters '
                f'are known, and {FEWEST} are needed.',
                where='--target', fix='Choose another target, or train it on scans of more protocols, preprocessed by this version of bidsharm.',
            )  # fmt: skip
        missing = [name for name in NEEDED if name not in target.parameters]
        if missing:
            raise UsageError(
                f'{target.name} lacks {", ".join(missing)}.', where='--target',
                fix='Add them, as numbers above 0: times in seconds, the flip angle in degrees, the field in tesla.',
            )  # fmt: skip
        return self.models[target.contrast]

    # --- Bundles ---

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of all regressions by name."""
        found: dict[str, NDArray[Any]] = {}
        for contrast, model in self.models.items():
            of_ridge = {name: getattr(model.ridge, name) for name in _RIDGE}
            found |= {f'{contrast}/{name}': value for name, value in of_ridge.items()}
            found |= {f'{contrast}/low': model.low, f'{contrast}/high': model.high}
            found |= {f'{contrast}/parts/{name}': value for name, value in model.parts.items()}
        return found

    def settings(self) -> dict[str, Any]:
        """Return what else is known, JSON types only."""
        found: dict[str, Any] = {contrast: {'protocols': count} for contrast, count in self.protocols.items()}
        for contrast, model in self.models.items():
            found[contrast] |= {'r2': model.r2, 'unit': model.unit, 'look': list(model.look)}
        return found

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> AcquisitionModels:
        """Return what :meth:`arrays` and :meth:`settings` gave."""
        learnt = cls({str(contrast): int(about['protocols']) for contrast, about in settings.items()})
        for contrast, about in settings.items():
            if 'r2' not in about:
                continue
            own = {
                name.removeprefix(f'{contrast}/'): value
                for name, value in arrays.items()
                if name.startswith(f'{contrast}/')
            }
            parts = {
                name.removeprefix('parts/'): value for name, value in own.items() if name.startswith('parts/')
            }
            learnt.models[contrast] = AcquisitionModel(
                ridge=Ridge(*(own[name] for name in _RIDGE)), low=own['low'], high=own['high'], parts=parts,
                look=tuple(about['look']), protocols=int(about['protocols']), r2=float(about['r2']), unit=float(about['unit']),
            )  # fmt: skip
        return learnt


def learn_model(
    protocols: Sequence[tuple[float, ...]], styles: Sequence[Style], look: tuple[str, ...], unit: float
) -> AcquisitionModel:
    """Learn the style of protocols from their acquisition parameters; every protocol counts the same.

    Parameters
    ----------
    protocols
        Parameters of each, as :func:`protocol_of` gives them.
    styles
        The style of each.
    look
        The parts of the style that are to be predicted.
    unit
        Goes with the model.
    """
    x, table = features(protocols), np.array(protocols, float)
    y = np.array([np.concatenate([style[name].ravel() for name in look]) for style in styles], float)
    there = table > 0
    low = np.where(there, table, np.inf).min(axis=0)
    return AcquisitionModel(
        ridge=Ridge.fit(x, y), low=np.where(there.any(axis=0), low, 0.0), high=table.max(axis=0),
        parts={name: np.mean([style[name] for style in styles], axis=0, dtype=np.float32) for name in styles[0]},
        look=look, protocols=len(protocols), r2=left_out_r2(x, y), unit=unit,
    )  # fmt: skip


def _spread(volumes: Sequence[TrainingVolume]) -> list[TrainingVolume]:
    """Return at most :data:`SCANS` volumes, from all over the list."""
    chosen = np.linspace(0, len(volumes) - 1, min(SCANS, len(volumes))).round().astype(int)
    return [volumes[index] for index in chosen]
