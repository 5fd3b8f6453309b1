"""What the signal of a tissue depends on, at any field strength from a portable scanner to 7 T.

Times are in seconds, field strengths in tesla. Brain tissue follows three published laws instead of a table, so that a
scanner of any field has values of one kind:

- T1 is a power of B0, with the powers found in vivo from 0.2 to 7 T: 0.382 for white matter, 0.376 for deep grey matter, here for
  all of it (Rooney et al. 2007, Magn Reson Med 57:308, doi:10.1002/mrm.21122). The factor makes it pass between T1 in vivo at 3 and
  7 T, 1.35 and 1.92 s in cortex, 0.81 and 1.15 s in white matter (Marques et al. 2010, NeuroImage 49:1271), measured with a
  sequence that is a kin of MPRAGE: T1 depends on how it is measured, by up to a fifth. Fluid has the same T1 at all fields.
- 1/T2 is a constant and a part in proportion to B0 (van Gelderen et al., Magn Reson Med 2023: brain at 3 and 7 T), here the line
  through T2 in vivo at 1.5, 3 and 7 T: 87, 76 and 47 ms for grey (frontal), 80, 71 and 47 ms for white matter (Cox and Gowland 2010,
  Magn Reson Med 64:1622). Below 1.5 T the line is continued.
- 1/T2* is 1/T2 and a part in proportion to B0, fitted to T2* in vivo of 84.0, 66.0 and 33.2 ms (grey) and 66.2, 53.2 and 26.8 ms
  (white) at the same fields (Peters et al. 2007, Magn Reson Imaging 25:748).

Bound protons, which the pulses of fast spin echoes saturate and which take that to the water: 6.3 and 11.2 per 111 in grey and white
matter at 3 T (Heo et al. 2019, PMC6422734).

Water content: white matter 69.1 %, grey matter 83.7 % (Oros-Peusquens et al. 2019, Front Neurol 10:1333).

Tissues around the brain matter only as what brain extraction has to remove. T1 of fat, muscle and blood is a power of B0 through
values at 1.5 and 3 T (fat: de Bazelaire et al. 2004, Radiology 230:652; muscle and blood: Stanisz et al. 2005, Magn Reson Med
54:507); the others are made of these, as :data:`SURROUNDINGS` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bidsharm.errors import UsageError

#: Field strengths that the laws are asked for (tesla).
FIELD_RANGE = (0.05, 7.5)


@dataclass(frozen=True)
class Relaxation:
    """What the signal of a tissue depends on.

    Parameters
    ----------
    t1, t2, t2_star
        Relaxation times in seconds.
    pd
        Proton density relative to pure water.
    source
        Where the numbers come from.
    bound
        Protons bound to macromolecules over those of water.
    """

    t1: float
    t2: float
    pd: float
    source: str
    t2_star: float = float('inf')
    bound: float = 0.0

    def __post_init__(self) -> None:
        # Dephasing comes on top of T2; without a value of its own it adds nothing.
        if self.t2_star > self.t2:
            object.__setattr__(self, 't2_star', self.t2)


@dataclass(frozen=True)
class BrainLaw:
    """Relaxation of a brain tissue as a function of the field strength B0.

    Parameters
    ----------
    t1_factor, t1_power
        T1 = factor B0^power (s).
    r2, r2_slope
        1/T2 = r2 + r2_slope B0 (1/s and 1/s/T).
    dephasing
        1/T2* = 1/T2 + dephasing B0 (1/s/T).
    pd
        Proton density relative to pure water.
    bound
        Protons bound to macromolecules over those of water.
    """

    t1_factor: float
    t1_power: float
    r2: float
    r2_slope: float
    dephasing: float
    pd: float
    bound: float

    def at(self, field_strength: float) -> Relaxation:
        """Return the values at a field strength."""
        r2 = self.r2 + self.r2_slope * field_strength
        return Relaxation(
            t1=self.t1_factor * field_strength**self.t1_power,
            t2=1 / r2,
            t2_star=1 / (r2 + self.dephasing * field_strength),
            pd=self.pd,
            bound=self.bound,
            source='T1 Rooney 2007, Marques 2010; T2 Cox 2010; T2* Peters 2007; PD Oros-Peusquens 2019',
        )


def _factor(power: float, measured: tuple[tuple[float, float], ...]) -> float:
    """Return the factor of T1 = factor B0^power through pairs of field and T1 (geometric mean)."""
    return float(np.exp(np.mean([np.log(t1) - power * np.log(field) for field, t1 in measured])))


def _line(times: tuple[float, float, float]) -> tuple[float, float]:
    """Return constant and slope of the rates 1/T through times at 1.5, 3 and 7 T (least squares)."""
    slope, constant = np.polyfit((1.5, 3.0, 7.0), 1 / np.array(times), 1)
    return float(constant), float(slope)


def _dephasing(t2: tuple[float, float, float], t2_star: tuple[float, float, float]) -> float:
    """Return the slope through the origin of 1/T2* - 1/T2 at 1.5, 3 and 7 T (least squares)."""
    fields, rates = np.array((1.5, 3.0, 7.0)), 1 / np.array(t2_star) - 1 / np.array(t2)
    return float(fields @ rates / (fields @ fields))


_T1 = {'GM': ((3.0, 1.35), (7.0, 1.92)), 'WM': ((3.0, 0.81), (7.0, 1.15))}
_T1_POWER = {'GM': 0.376, 'WM': 0.382}
_T2 = {'GM': (0.087, 0.076, 0.047), 'WM': (0.080, 0.071, 0.047)}
_T2_STAR = {'GM': (0.0840, 0.0660, 0.0332), 'WM': (0.0662, 0.0532, 0.0268)}
_WATER = {'GM': 0.837, 'WM': 0.691}
_BOUND = {'GM': 6.3 / 111, 'WM': 11.2 / 111}

BRAIN = {
    tissue: BrainLaw(
        _factor(_T1_POWER[tissue], _T1[tissue]), _T1_POWER[tissue], *_line(_T2[tissue]),
        _dephasing(_T2[tissue], _T2_STAR[tissue]), _WATER[tissue], _BOUND[tissue],
    )
    for tissue in ('GM', 'WM')
}  # fmt: skip

_FLUID = Relaxation(
    4.33, 1.89, 1.0, 'T1 Rooney 2007; T2 of subarachnoid CSF at 3 T, PMC10696635; PD 1 by definition'
)

#: T1 at 1.5 and 3 T, the mean of T2 at both (seconds), proton density, source.
MEASURED: dict[str, tuple[float, float, float, float, str]] = {
    'fat': (0.343, 0.382, 0.063, 0.9, 'de Bazelaire 2004; PD assumed'),
    'muscle': (1.008, 1.412, 0.047, 0.8, 'Stanisz 2005; PD assumed'),
    'blood': (1.441, 1.932, 0.283, 0.8, 'Stanisz 2005; PD assumed; at rest'),
}

#: Tissues around the brain: what each is made of, and the factor on its proton density.
SURROUNDINGS: dict[str, tuple[str, float]] = {
    'meninges': ('CSF', 1.0),  # the fluid between brain and bone; membranes are too thin to see
    'eye': ('CSF', 1.0),
    'vessel': ('blood', 0.3),  # flowing blood leaves before its echo
    'marrow': ('fat', 0.6),  # fat in spongy bone
    'scalp': ('fat', 0.78),  # skin is darker than fat
    'soft tissue': ('muscle', 1.0),
}

#: Tissues in terms of another: that one, the factors on its T1, T2 and T2*, and bound protons, the proton density, the source.
#:
#: - Deep grey matter: T1 of putamen and caudate over that of cortex is 0.91 to 0.93 at 1.5 T, 0.83 to 0.87 at 3 T and 0.85 to
#:   0.87 at 7 T (Wright et al. 2008, Magn Reson Mater Phys 21:121). Its iron is left out, and thalamus is not told apart.
#: - Lesion: round numbers that make it darker than white matter in T1w and brighter in T2w and FLAIR, as in multiple sclerosis.
#: - Mass: at 3 T, T1 of 1.96 s and T2 of 152 ms, in the ranges that go with dense tumour cells in glioma, 1.85 to 3.2 s and 115 to
#:   225 ms (MP2RAGE and T2 maps against 11C-methionine PET and stereotactic samples).
DERIVED: dict[str, tuple[str, float, float, float, float, str]] = {
    'deep GM': ('GM', 0.87, 1.0, 1.0, 0.82, 'T1 Wright 2008, else as GM'),
    'lesion': ('WM', 1.7, 1.9, 0.4, 0.83, 'assumed'),
    'mass': ('GM', 1.45, 2.0, 0.5, 0.88, 'T1 and T2 as in glioma, else assumed'),
    'cord': ('WM', 1.0, 1.0, 1.0, 0.691, 'as WM'),
}

#: Nothing is left of cortical bone at the echo (T2 below 1 ms).
_BONE = Relaxation(0.2, 0.0005, 0.0, 'cortical bone: T2 below 1 ms, nothing left at the echo, hence PD 0')


def relaxation(tissue: str, field_strength: float) -> Relaxation:
    """Return the relaxation of a tissue.

    Parameters
    ----------
    tissue
        ``CSF``, ``GM``, ``WM``, ``skull``, or a key of :data:`MEASURED`, :data:`SURROUNDINGS` or :data:`DERIVED`.
    field_strength
        Tesla.

    Raises
    ------
    UsageError
        If the field strength lies beyond :data:`FIELD_RANGE`, or there is no such tissue.
    """
    low, high = FIELD_RANGE
    if not low <= field_strength <= high:
        raise UsageError(
            f'No relaxation times are known at {field_strength:g} T.', where='field_strength',
            fix=f'Use {low:g} to {high:g} T.',
        )  # fmt: skip
    if tissue in BRAIN:
        return BRAIN[tissue].at(field_strength)
    if tissue == 'CSF':
        return _FLUID
    if tissue == 'skull':
        return _BONE
    if tissue in MEASURED:
        return _power_law(tissue, field_strength)
    if tissue in SURROUNDINGS:
        like, share = SURROUNDINGS[tissue]
        found = relaxation(like, field_strength)
        return Relaxation(found.t1, found.t2, share * found.pd, f'as {like}: {found.source}', found.t2_star)
    if tissue in DERIVED:
        like, t1, t2, bound, pd, source = DERIVED[tissue]
        found = relaxation(like, field_strength)
        return Relaxation(t1 * found.t1, t2 * found.t2, pd, source, t2 * found.t2_star, bound * found.bound)
    raise UsageError(f'There is no tissue "{tissue}".', where='tissue')


def _power_law(tissue: str, field_strength: float) -> Relaxation:
    first, second, t2, pd, source = MEASURED[tissue]
    t1 = first * (second / first) ** (np.log(field_strength / 1.5) / np.log(2))
    return Relaxation(float(t1), t2, pd, source)
