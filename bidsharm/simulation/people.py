"""People: who they are, what their heads are like, and how they lie in a scanner."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bidsharm.simulation.anatomy import HEAD_CENTRE, TISSUES, Anatomy, Float64
from bidsharm.simulation.pathology import add_lesions, add_mass, add_texture, widen_sulci
from bidsharm.simulation.warps import Warp, push, radius_before, random_warp

#: Linear size of heads relative to the anatomy, by sex (brains of men are a tenth larger in volume), and its spread.
SIZE, SIZE_SPREAD = {'F': 0.983, 'M': 1.017}, 0.02
#: From 50 to 80 years, how far the walls of the ventricles move out, and how much cortex is lost (mm).
VENTRICLES_MM, CORTEX_MM = 1.5, 0.4
#: Spread of both between people of one age (mm).
VENTRICLES_SPREAD, CORTEX_SPREAD = 0.3, 0.1
#: Relative spread between people of T1 and of proton density; every tissue has a draw of its own.
RELAXATION_SPREAD = (0.03, 0.01)
#: Over the radius of a mass: how fast it pushes its surroundings, how far away that is fastest, and how far its oedema reaches.
PUSH, PUSH_REACH, OEDEMA = 0.5, 2.0, 1.6


@dataclass(frozen=True)
class Person:
    """A simulated participant.

    Parameters
    ----------
    label
        BIDS label, without ``sub-``.
    age
        Age in years, 20 to 80. Ventricles and sulci widen with it.
    sex
        ``F`` or ``M``; heads differ in size.
    head
        The anatomy that this person's head is made from, with what age and disease have done to it.
    warp
        From this person's head, scaled to the size of the anatomy, to the anatomy.
    size
        Linear size relative to the anatomy.
    ventricles_mm, cortex_mm
        How far the walls of the ventricles have moved out, and how much cortex is lost.
    lesions
        Number of lesions as of multiple sclerosis.
    mass_mm
        Radius of a tumour-like mass; 0 for none.
    relaxation
        Factors on T1 and proton density of each tissue.
    """

    label: str
    age: int
    sex: str
    head: Anatomy
    warp: Warp
    size: float = 1.0
    ventricles_mm: float = 0.0
    cortex_mm: float = 0.0
    lesions: int = 0
    mass_mm: float = 0.0
    relaxation: dict[str, tuple[float, float]] = field(default_factory=dict)

    def place(self, pose: Float64) -> Float64:
        """Return the map from the scanner's world to the head scaled to the size of the anatomy, shape (4, 4)."""
        shrink = np.eye(4)
        centre = np.array(HEAD_CENTRE)
        shrink[:3, :3] /= self.size
        shrink[:3, 3] = centre - centre / self.size
        return shrink @ pose


def draw_person(
    rng: np.random.Generator,
    label: str,
    anatomy: Anatomy,
    walls: Float64,
    *,
    lesions: int = 0,
    mass_mm: float = 0.0,
    texture: bool = True,
    usual_size: float = 1.0,
) -> Person:
    """Draw a person: age, sex and head.

    Parameters
    ----------
    rng
        Source of chance.
    label
        BIDS label, without ``sub-``.
    anatomy
        Where the head starts from.
    walls
        How its ventricles widen, from :func:`bidsharm.simulation.warps.ventricle_walls`.
    lesions
        Number of lesions as of multiple sclerosis.
    mass_mm
        Radius of a tumour-like mass in mm; 0 for none.
    texture
        Whether tissue varies within itself.
    usual_size
        Linear size of people relative to the anatomy.
    """
    age = int(rng.integers(20, 81))
    sex = str(rng.choice(['F', 'M']))
    later = (age - 50) / 30
    # Round numbers, not fitted ones.
    ventricles = VENTRICLES_MM * later + VENTRICLES_SPREAD * rng.standard_normal()
    cortex = max(0.0, CORTEX_MM * later + CORTEX_SPREAD * rng.standard_normal())
    size = usual_size * SIZE[sex] * (1 + SIZE_SPREAD * rng.standard_normal())
    factors = 1 + rng.standard_normal((len(TISSUES), 2)) * RELAXATION_SPREAD
    velocity = ventricles * walls
    head = add_lesions(widen_sulci(anatomy, cortex), lesions, rng)
    if mass_mm > 0:
        # The head is scaled afterwards, and the push makes room for what is painted smaller.
        radius = mass_mm / size
        how = PUSH * radius, PUSH_REACH * radius
        painted, rim = (radius_before(part * radius, *how) for part in (1, OEDEMA))
        head, centre = add_mass(head, painted, rim, rng)
        velocity = velocity + push(centre, *how)
    if texture:
        head = add_texture(head, rng)
    return Person(
        label=label, age=age, sex=sex, head=head, warp=random_warp(rng, velocity=velocity), size=float(size),
        ventricles_mm=float(ventricles), cortex_mm=float(cortex), lesions=lesions, mass_mm=mass_mm,
        relaxation={name: (float(t1), float(pd)) for name, (t1, pd) in zip(TISSUES, factors, strict=True)},
    )  # fmt: skip


def random_pose(rng: np.random.Generator, *, degrees: float = 3.0, millimetres: float = 4.0) -> Float64:
    """Draw how a head lies in the scanner.

    Parameters
    ----------
    rng
        Source of chance.
    degrees, millimetres
        Largest rotation about, and shift along, each axis.

    Returns
    -------
    ndarray of shape (4, 4)
        Rigid map from the scanner's world to the head's, in mm.
    """
    x, y, z = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    centre = np.array(HEAD_CENTRE)
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x
    pose[:3, 3] = centre - pose[:3, :3] @ centre + rng.uniform(-millimetres, millimetres, 3)
    return pose
