"""Methods that take a scan apart into anatomy and contrast: Dewey et al. 2020, CALAMITI, Zuo et al. 2022 and HACA3.

They are one method (:mod:`bidsharm.harmonizers.disentangled`) with other settings, and the defaults are those of HACA3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.disentangled import Attention, Disentangled, DisentangledSettings, Fuse, Pairs
from bidsharm.harmonizers.network_settings import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class CalamitiSettings(DisentangledSettings):
    """CALAMITI: the anatomy of one contrast, picked at random, a critic instead of patches, no artifacts."""

    attention: Attention = 'swap'
    drop_target: float = 0.0
    eta: int = 0
    contrastive: float = 0.0
    confusion: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Dewey2020Settings(CalamitiSettings):
    """Dewey et al. 2020: as CALAMITI, without the bound on the contrast code, cycles and fusion; axial slices."""

    axes: tuple[int, ...] = (2,)
    fuse: Fuse = 'median'
    kl: float = 0.0
    cycle: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SingleModalitySettings(CalamitiSettings):
    """Zuo et al. 2022: two orientations of a scan, whose contrast is the same, in the place of two contrasts."""

    pairs: Pairs = 'orientations'
    fuse: Fuse = 'median'
    confusion: float = 0.0


def _card(name: str, title: str, paper: str, doi: str, needs_fit: tuple[str, ...], deviations: str) -> Card:
    return Card(
        name=name, title=title, paper=paper, doi=doi, family='disentangled', supervision='unpaired', geometry='grid', targets=('site', 'reference', 'acquisition'),
        needs_fit=needs_fit, needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations=deviations,
    )  # fmt: skip


_ALL = (
    'The features of the perceptual loss come from fixed random filters, not from a network trained on photographs; the contrast code fills the brain, not the whole slice; the rate of learning is '
    'constant; leaky ReLUs have a slope of 0.2 instead of 0.1, and intensities are not cut off at five units; a voxel has its likeliest label, not a drawn one, when a scan is harmonized. '
)
_NO_CODE = 'There is no public code: networks and weights of the losses are those of HACA3. '


class HACA3(Disentangled):
    """HACA3: attention over the contrasts of a visit, and artifact codes (Zuo et al. 2023)."""

    card = replace(_card(
        'haca3', 'Anatomy, contrast and artifacts apart; attention over the contrasts that are there',
        'Zuo L, et al. HACA3: a unified approach for multi-site MR image harmonization. Comput Med Imaging Graph 2023;109:102285.',
        '10.1016/j.compmedimag.2023.102285', ('multi_contrast',),
        _ALL + 'The artifact encoder learns in a stage of its own, from simulated noise, ghosts and coarse lines. Sources are '
        'spoiled by the same three; in the public code also by motion and by a bias field.',
    ), companions=True)  # fmt: skip


class Calamiti(Disentangled):
    """CALAMITI: the anatomy of one contrast in the contrast of another (Zuo et al. 2021)."""

    Preset: ClassVar[type[NetworkSettings]] = CalamitiSettings
    card = _card(
        'calamiti', 'Anatomy and contrast apart, by swapping contrasts of a visit',
        'Zuo L, et al. Unsupervised MR harmonization by learning disentangled representations using information bottleneck theory. '
        'NeuroImage 2021;243:118569.', '10.1016/j.neuroimage.2021.118569', ('multi_contrast',),
        _NO_CODE + _ALL + 'The critic guesses the contrast; networks are tuned to a new site only where `bidsharm-train --from` does it.',
    )  # fmt: skip


class Dewey2020(Disentangled):
    """The first of the family: swapped contrasts on axial slices (Dewey et al. 2020)."""

    Preset: ClassVar[type[NetworkSettings]] = Dewey2020Settings
    card = _card(
        'dewey2020', 'Anatomy and contrast apart, on axial slices',
        'Dewey BE, et al. A disentangled latent space for cross-site MRI harmonization. MICCAI 2020:720-729.', '10.1007/978-3-030-59728-3_70', ('multi_contrast',),
        _NO_CODE + _ALL + 'The contrast code comes from the drawn image, not from another one of its site.',
    )  # fmt: skip


class SingleModality(Disentangled):
    """Two orientations of a scan instead of two contrasts (Zuo et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = SingleModalitySettings
    card = _card(
        'single-modality', 'Anatomy and contrast apart, from one contrast in two orientations',
        'Zuo L, et al. Disentangling a single MR modality. MICCAI Workshop on Data Augmentation, Labelling, and Imperfections 2022:54-63.',
        '10.48550/arXiv.2205.04982', ('cohort',),
        _NO_CODE + _ALL + 'The measure of disentanglement that the paper proposes is left out.',
    )  # fmt: skip
