"""Heads to start from: the MNI152 tissue maps in a simple shell of bone and scalp, or anybody's label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.imaging.grids import MAX_VOXELS, load_checked
from bidsharm.imaging.templates import tissue_priors
from bidsharm.simulation.anatomy import BRAIN_TISSUES, TISSUES, Anatomy, Float32, signed_distance

#: Outer borders of the shells, in mm from the smoothed surface of the brain.
SHELL_BORDERS = {'meninges': 2.0, 'skull': 8.0, 'scalp': 13.0}

#: Where the middle of a brain lies (RAS mm): that of the MNI152 template.
BRAIN_CENTRE = (0.0, -21.7, 9.6)
#: Linear size of people relative to the template, whose brain of 1.9 l is that of a giant.
TEMPLATE_SIZE = 0.925
#: How far below the middle of the brain a head is kept (mm): the neck fades out of the coils anyway.
NECK_MM = 110.0

#: Numbers of FreeSurfer's aseg (and of SimNIBS around the brain) and the tissue of the head that each is; :data:`PARCELS` has
#: the rest. Choroid plexus counts as GM, which it resembles in a T1w. Outlines (1, 6, 40, 45, 73, 74) are no tissue.
LABELS: dict[str, tuple[int, ...]] = {
    'CSF': (4, 5, 14, 15, 24, 29, 43, 44, 61, 72, 213, 221, 256, 257),  # 29 and 61: undetermined, mostly beside fluid
    'GM': (
        3, 8, 19, 20, 31, 42, 47, 55, 56, 63, 99, 136, 137, 163, 164, 172, 179, 180, 181, 182, 183, 184, 193, 194, 195, 196, 197,
        198, 199, 200, 220,
    ),
    'deep GM': (
        9, 10, 11, 12, 13, 17, 18, 26, 27, 48, 49, 50, 51, 52, 53, 54, 58, 59, 75, 76, 80, 81, 82, 96, 97, 138, 139, 169, 171,
        173, 174, 175, 176, 178,
    ),
    'WM': (
        2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 78, 79, 85, 86, 87, 88, 155, 156, 157, 158, 159, 160, 161, 162, 170, 177, 192, 219,
        223, 250, 251, 252, 253, 254, 255,
    ),
    'vessel': (30, 62, 502, 514),
    'eye': (506,),
    'soft tissue': (507, 508, 509, 530),
    'scalp': (511, 118, 258),
    'cord': (512, 126),
    'skull': (515, 165, 121, 129),
    'marrow': (516, 142),
}  # fmt: skip
#: First and last number of FreeSurfer's parcels, and their tissue: aparc, wmparc, white matter that wmparc gives to no parcel,
#: and cortex and white matter by a2009s.
PARCELS = (
    (1000, 2999, 'GM'), (3000, 4999, 'WM'), (5001, 5002, 'WM'),
    (11100, 11175, 'GM'), (12100, 12175, 'GM'), (13100, 13175, 'WM'), (14100, 14175, 'WM'),
)  # fmt: skip

#: Numbers of the ventricles, whose fluid is pure.
VENTRICLES = (4, 5, 14, 15, 43, 44, 72, 213, 221)
#: How much thinner the cortex of label maps is than that of people (mm): half a voxel of sulcus goes to each bank.
THIN_CORTEX_MM = 0.5
#: Part of the fluid in sulci that is membranes and vessels.
MEMBRANES = 0.3

_MAPS = ('CSF', 'GM', 'WM')  # the tissue maps of the template
_CLOSING_MM = 10.0  # sulci up to twice as wide lie inside the surface of the brain
_CUBE = 1e-3  # sides of a voxel that differ less than this part are alike
_MARGIN = 24.0  # mm of air around the brain of the template: the shell and what a warp may move it


def load_template(*, head: bool = True, step: int = 1) -> Anatomy:
    """Return the average anatomy: the bundled MNI152 tissue maps, in a procedural shell.

    Parameters
    ----------
    head
        Whether to put meninges, skull and scalp around the brain.
    step
        Voxel size in mm, a whole number.

    Notes
    -----
    The shell follows the closed surface of the brain at fixed distances. It gives brain extraction
    something to remove; there is no face, no neck and no marrow.
    """
    image, priors_image = tissue_priors()
    mask = np.asarray(image.dataobj) > 0
    priors = np.asarray(priors_image.dataobj, dtype=np.float32)
    margin = int(np.ceil(_MARGIN / step)) * step
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    # Air on every side, and whole blocks of voxels.
    widths = [
        (margin, margin + (start - stop) % step) for start, stop in ((axis.start, axis.stop) for axis in box)
    ]
    total = np.where(
        mask & (priors.sum(-1) > 0), priors.sum(-1), np.inf
    )  # the maps reach a little beyond the brain
    brain = np.stack([np.pad((priors[..., k] / total)[box], widths) for k in range(len(_MAPS))])
    fractions = np.zeros((len(TISSUES), *(size // step for size in brain.shape[1:])), dtype=np.float32)
    fractions[: len(_MAPS)] = _block_mean(brain, step)
    if head:
        fractions[len(_MAPS) : len(_MAPS) + len(SHELL_BORDERS)] = _shell(
            fractions[: len(_MAPS)].sum(axis=0), float(step)
        )
    affine = np.array(priors_image.affine, dtype=float)
    origin = np.array([axis.start - margin + (step - 1) / 2 for axis in box])
    affine[:3, 3] += affine[:3, :3] @ origin
    affine[:3, :3] *= step
    return Anatomy(fractions, affine)


def _block_mean(data: Float32, step: int) -> Float32:
    x, y, z = (size // step for size in data.shape[1:])
    return data.reshape(-1, x, step, y, step, z, step).mean(axis=(2, 4, 6))


def load_labels(path: Path, *, head: bool = True) -> Anatomy:
    """Return the head of a label map: a FreeSurfer-like segmentation, with or without what is around the brain.

    The head is moved so that the middle of its brain is that of the template. Voxels that are no cubes are divided into
    cubes of their shortest side, each with the label of the voxel that its middle lies in. Fluid inside the closed
    surface of the brain is CSF, and that around it meninges; a map that ends at the cortex gets both. Labels are blurred
    by half a voxel, which leaves every voxel at a border a mixture. Voxels of a millimetre make sulci too wide and too
    clean, so cortex grows into them (:func:`narrow_sulci`), and what fluid is left holds some membranes and vessels.

    Parameters
    ----------
    path
        Image of labels (:data:`LABELS`, :data:`PARCELS`).
    head
        Whether to keep what is around the brain; where the map has nothing there, the shell of the template is used.

    Raises
    ------
    UsageError
        If the map has labels of an unknown meaning, no brain, or voxels so flat that cubes would be too many.
    bidsharm.errors.ScanError
        If the image cannot be read.
    """
    image = nib.as_closest_canonical(load_checked(path))
    codes = np.rint(np.asarray(image.dataobj)).astype(np.int32)
    codes, sizes = _in_cubes(codes, np.array(image.header.get_zooms()[:3], dtype=float), path.name)
    tissue, ventricles = _tissues_of(codes, path.name), np.isin(codes, VENTRICLES)
    affine = np.diag([*sizes, 1.0])
    spacing = float(affine[0, 0])
    solid = np.isin(tissue, [TISSUES.index(name) for name in ('GM', 'WM', 'deep GM')])
    if not solid.any():
        raise UsageError(
            'The label map has no brain.', where=path.name, fix='Give a FreeSurfer-like segmentation.'
        )
    centre = np.array(ndimage.center_of_mass(solid))
    (tissue, solid, ventricles), low = _cut(tissue, (solid, ventricles), centre, affine)
    affine[:3, 3] = np.array(BRAIN_CENTRE) - affine[:3, :3] @ (centre - low)
    filled = solid | ventricles  # however wide they are
    closed = _hull(filled, spacing) <= 0
    fluid = np.isin(tissue, [TISSUES.index('CSF'), -1])
    inner = (closed | filled) & fluid
    outer = ~closed & ~filled & (tissue == TISSUES.index('CSF'))
    tissue[inner], tissue[outer] = TISSUES.index('CSF'), TISSUES.index('meninges')
    fractions = np.zeros((len(TISSUES), *tissue.shape), dtype=np.float32)
    for index in np.unique(tissue[tissue >= 0]):
        ndimage.gaussian_filter((tissue == index).astype(np.float32), 0.5, output=fractions[index])
    found = narrow_sulci(Anatomy(fractions, affine), THIN_CORTEX_MM, keep=ventricles)
    fractions = found.fractions
    around = [index for index, name in enumerate(TISSUES) if name not in BRAIN_TISSUES]
    if not head:
        fractions[around] = 0
    elif not fractions[TISSUES.index('scalp')].any():
        fractions[around] = 0
        shell = [TISSUES.index(name) for name in SHELL_BORDERS]
        fractions[shell] = _shell(found.brain, spacing)
    return _mix_membranes(found, ventricles)


def _in_cubes(
    codes: NDArray[np.int32], sizes: NDArray[np.float64], name: str
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return a label map with cubes for voxels, and their sizes (mm); a map of cubes as it is."""
    side = sizes.min()
    if np.allclose(sizes, side, rtol=_CUBE, atol=0):
        return codes, sizes
    counts = np.rint(codes.shape * sizes / side).astype(int)
    if counts.prod(dtype=float) > MAX_VOXELS:
        raise UsageError(
            'The voxels of the label map are too flat to be divided into cubes.', where=name,
            fix='Resample it to cubes, with nearest neighbours.',
        )  # fmt: skip
    for axis, count in enumerate(counts):
        places = ((np.arange(count) + 0.5) * side / sizes[axis]).astype(int)
        codes = codes.take(np.minimum(places, codes.shape[axis] - 1), axis)
    return codes, np.full(3, side)


def _hull(mask: NDArray[np.bool_], spacing: float, smoothing: float = 0.0) -> Float32:
    """Return the distance to the surface of a mask with sulci and ventricles filled (mm), negative inside.

    Filled by morphological closing of :data:`_CLOSING_MM`. The surface is smooth, so 2 mm are enough for it, and much faster.
    """
    coarse = max(1, round(2 / spacing))
    size = spacing * coarse
    wide = signed_distance(mask[::coarse, ::coarse, ::coarse], size) <= _CLOSING_MM
    distance = signed_distance(signed_distance(wide, size) <= -_CLOSING_MM, size)
    if smoothing:
        distance = ndimage.gaussian_filter(distance, smoothing / size)
    if coarse > 1:
        points = np.meshgrid(*(np.arange(n) / coarse for n in mask.shape), indexing='ij')
        distance = ndimage.map_coordinates(distance, points, order=1, mode='nearest', output=np.float32)
    return distance


def _tissues_of(codes: NDArray[np.int32], name: str) -> NDArray[np.int8]:
    """Return the index of each voxel's tissue, -1 for air."""
    table = {code: TISSUES.index(tissue) for tissue, numbers in LABELS.items() for code in numbers}
    for first, last, tissue in PARCELS:
        table |= dict.fromkeys(range(first, last + 1), TISSUES.index(tissue))
    present, inverse = np.unique(codes, return_inverse=True)
    unknown = [code for code in present.tolist() if code != 0 and code not in table]
    if unknown:
        raise UsageError(
            f'The label map has labels of unknown meaning: {", ".join(map(str, unknown[:12]))}.',
            where=name, fix='Use the numbers of FreeSurfer; 0 is air.',
        )  # fmt: skip
    indices = [table.get(code, -1) for code in present.tolist()]
    return np.array(indices, dtype=np.int8)[inverse].reshape(codes.shape)


def narrow_sulci(head: Anatomy, millimetres: float, *, keep: NDArray[np.bool_]) -> Anatomy:
    """Let cortex grow into the fluid that it borders on.

    Parameters
    ----------
    head
        The head; it is left as it is.
    millimetres
        How far.
    keep
        Fluid that stays: the ventricles, shape (X, Y, Z).
    """
    spacing = np.diag(head.affine)[:3]
    cortex = head.part('GM') > 0.5
    # The border lies half a voxel before the centre of the first voxel that is no cortex.
    away = ndimage.distance_transform_edt(~cortex, sampling=spacing) - spacing.mean() / 2
    grown = np.clip(0.5 + (millimetres - away) / spacing.mean(), 0, 1).astype(np.float32)
    grown *= ~ndimage.binary_dilation(keep)
    fractions = head.fractions.copy()
    for name in ('CSF', 'meninges'):
        taken = grown * head.part(name)
        fractions[TISSUES.index(name)] -= taken
        fractions[TISSUES.index('GM')] += taken
    return Anatomy(fractions, head.affine, head.texture)


def _mix_membranes(head: Anatomy, ventricles: NDArray[np.bool_]) -> Anatomy:
    """Turn some of the fluid outside the ventricles into soft tissue."""
    fractions = head.fractions.copy()
    taken = MEMBRANES * ~ndimage.binary_dilation(ventricles) * head.part('CSF')
    fractions[TISSUES.index('CSF')] -= taken
    fractions[TISSUES.index('soft tissue')] += taken
    return Anatomy(fractions, head.affine, head.texture)


def _cut(
    tissue: NDArray[np.int8],
    masks: tuple[NDArray[np.bool_], ...],
    centre: NDArray[np.float64],
    affine: NDArray[np.float64],
) -> tuple[tuple[Any, ...], NDArray[np.int64]]:
    """Cut a map and masks down to the head and some neck, with a margin of air; return them and where the cut begins."""
    sizes = np.diag(affine)[:3]
    tissue[:, :, : max(0, int(centre[2] - NECK_MM / sizes[2]))] = -1
    box = ndimage.find_objects((tissue >= 0).astype(np.uint8))[0]
    margin = np.ceil(_MARGIN / sizes).astype(int)
    widths = [(int(width), int(width)) for width in margin]
    low = np.array([axis.start for axis in box]) - margin
    return (
        np.pad(tissue[box], widths, constant_values=-1),
        *(np.pad(mask[box], widths) for mask in masks),
    ), low


def _shell(brain: Float32, spacing: float) -> Float32:
    """Return meninges, skull and scalp around a brain (fraction per voxel), shape (3, X, Y, Z)."""
    mask = brain >= 0.5
    distance = _hull(mask, spacing, smoothing=3.0)
    filled = brain
    layers = []
    for border in SHELL_BORDERS.values():
        within = np.maximum(np.clip(0.5 + (border - distance) / spacing, 0, 1), filled)
        layers.append(within - filled)
        filled = within
    return np.stack(layers).astype(np.float32)
