"""Mosaics of one scan: before and after, tissue contours, change, brain mask and registration.

Nothing is resampled but the slices on display, each by its own voxel size. All mosaics of a scan share one
layout, so that they can be laid over each other. The subject's left is on the left of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.evaluation.metrics import change_map
from bidsharm.temporary import atomic_path

#: Slices per row, and the width of the mosaic in pixels.
COLUMNS = 7
WIDTH = 1400
#: What the left and the right edge of an axial, a coronal and a sagittal panel are.
EDGES = (('L', 'R'), ('L', 'R'), ('P', 'A'))
#: Columns whose panels carry those letters: the first, and the one that a narrow screen shows.
LABELLED = (0, COLUMNS // 2)
#: The change map saturates at this share of the range of intensities.
CHANGE_LIMIT = 0.20

_GAP = 8
_MAX_PANEL_HEIGHT = 270
_ROW_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # axes across, up and through, for each row
_WM_COLOUR = (255, 178, 44)
_BRAIN_COLOUR = (72, 202, 228)
_LOWER_COLOUR = np.array([64, 150, 255], float)
_HIGHER_COLOUR = np.array([255, 122, 40], float)

Canvas = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Which slices a mosaic shows and where they lie: the same for every mosaic of a scan.

    Parameters
    ----------
    affine
        Voxel to world of the volume after it was brought to the closest RAS+ axes, shape (4, 4).
    start, stop
        Crop in voxels, half open, per axis.
    slices
        Indices of the slices through x, y and z, ``COLUMNS`` each.
    scale
        Pixels per millimetre.
    """

    affine: NDArray[np.float64]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    slices: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    scale: float

    @property
    def zooms(self) -> NDArray[np.float64]:
        """Voxel size in mm, shape (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    def panel(self, row: int) -> tuple[int, int]:
        """Return width and height in pixels of the panels of a row."""
        extent = (np.array(self.stop) - self.start) * self.zooms * self.scale
        across, up, _ = _ROW_AXES[row]
        return max(1, round(extent[across])), max(1, round(extent[up]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the mosaic in pixels."""
        return WIDTH, sum(self.panel(row)[1] for row in range(3)) + 4 * _GAP

    def boxes(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield row, slice index, left and top of every panel."""
        top = _GAP
        for row in range(3):
            width, height = self.panel(row)
            for column, index in enumerate(self.slices[_ROW_AXES[row][2]]):
                cell = WIDTH // COLUMNS
                yield row, index, column * cell + (cell - width) // 2, top
            top += height + _GAP

    def position(self, row: int, index: int) -> float:
        """Return the world coordinate in mm of a slice, at the middle of the crop."""
        through = _ROW_AXES[row][2]
        voxel = (np.array(self.start) + self.stop - 1) / 2
        voxel[through] = index
        return float((self.affine @ [*voxel, 1.0])[through])


def draw_scan_figures(
    *,
    before: NDArray[Any],
    after: NDArray[Any],
    mask: NDArray[Any],
    dseg: NDArray[Any],
    affine: NDArray[Any],
    out_dir: Path,
    stem: str,
    template_overlay: tuple[NDArray[Any], NDArray[Any]] | None = None,
    template_affine: NDArray[Any] | None = None,
) -> dict[str, Path]:
    """Draw the figures of one scan as small WebP files.

    Parameters
    ----------
    before
        Bias-corrected whole-head scan on its native grid, shape (X, Y, Z).
    after
        Harmonized brain on the same grid, 0 outside the mask.
    mask
        Brain mask, same shape, bool.
    dseg
        Tissue labels, same shape: 1 GM, 2 WM, 3 CSF.
    affine
        Voxel to world (RAS+ mm), shape (4, 4).
    out_dir, stem
        Files are written as ``<out_dir>/<stem>_desc-<name>.webp``.
    template_overlay
        The scan in template space and the template, on one grid; None leaves out ``registration``.
    template_affine
        Voxel to world of that grid; RAS+ with 1 mm voxels when not given.

    Returns
    -------
    dict
        Path by name: ``before``, ``after``, ``contours`` (transparent), ``change``, ``mask`` and ``registration``.

    Raises
    ------
    bidsharm.errors.ScanError
        If the arrays do not share one 3-D grid, or the affine has no orientation.
    """
    _check_grids(stem, before, after, mask, dseg)
    scan, harmonized = _finite(before), _finite(after)
    scan, harmonized, brain, labels = (
        to_ras(volume, affine, stem) for volume in (scan, harmonized, np.asarray(mask) > 0, np.asarray(dseg))
    )
    ras_affine = _ras_affine(affine, np.shape(before))
    layout = plan(brain, ras_affine, margin=4.0)
    anatomy = mosaic(_window(scan, brain, brain), layout)

    pictures = {
        'before': _grey(anatomy),
        'after': _grey(mosaic(_window(harmonized, brain, brain), layout)),
        'contours': _contours(labels, layout),
        'change': _change_map(anatomy, mosaic(_finite(change_map(scan, harmonized, brain)), layout)),
    }
    pictures = {
        name: picture if name == 'contours' else _annotate(picture, layout)
        for name, picture in pictures.items()
    }
    wide = plan(brain, ras_affine, margin=28.0)
    pictures['mask'] = _annotate(_mask_picture(scan, brain, wide), wide)
    if template_overlay is not None:
        pictures['registration'] = _registration(*template_overlay, template_affine, stem)
    return {
        name: _save(picture, Path(out_dir) / f'{stem}_desc-{name}.webp', lossless=name == 'contours')
        for name, picture in pictures.items()
    }


def before_after(before: NDArray[Any], after: NDArray[Any], mask: NDArray[Any], affine: NDArray[Any]) -> Any:
    """Draw slices of a brain before, and below them the same slices after.

    Parameters
    ----------
    before, after
        Intensities on one grid, shape (X, Y, Z); each has a grey scale of its own.
    mask
        Brain mask, same shape; nothing is shown outside.
    affine
        Voxel to world (RAS+ mm), shape (4, 4).

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    bidsharm.errors.ScanError
        If the arrays do not share one 3-D grid, or the affine has no orientation.
    """
    from PIL import Image

    _check_grids('', before, after, mask, mask)
    volumes = (_finite(before), _finite(after), np.asarray(mask) > 0)
    scan, harmonized, brain = (to_ras(volume, affine) for volume in volumes)
    layout = plan(brain, _ras_affine(affine, np.shape(before)), margin=4.0)
    rows = [
        _annotate(_grey(mosaic(_window(each, brain, brain), layout)), layout) for each in (scan, harmonized)
    ]
    picture = Image.new('RGB', (layout.size[0], 2 * layout.size[1]))
    for number, row in enumerate(rows):
        picture.paste(row, (0, number * layout.size[1]))
    return picture


def to_ras(volume: NDArray[Any], affine: NDArray[Any], name: str = '') -> NDArray[Any]:
    """Flip and permute the axes of a volume to the closest RAS+ order.

    Parameters
    ----------
    volume
        Shape (X, Y, Z).
    affine
        Voxel to world (RAS+ mm), shape (4, 4).
    name
        Scan, for the message.

    Raises
    ------
    bidsharm.errors.ScanError
        If the affine does not say which way an axis points.
    """
    orientation = _orientation(affine)
    if not np.isfinite(orientation).all():
        raise ScanError(
            'The affine does not say which way the axes point.', where=name, fix='Repair the header.'
        )
    return np.asarray(nib.orientations.apply_orientation(volume, orientation))


def _orientation(affine: NDArray[Any]) -> NDArray[np.float64]:
    matrix = np.asarray(affine, float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return np.full((3, 2), np.nan)
    return np.asarray(nib.orientations.io_orientation(matrix))


def _ras_affine(affine: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    flip = nib.orientations.inv_ornt_aff(_orientation(affine), shape)
    return np.asarray(np.asarray(affine, float) @ flip)


def _check_grids(stem: str, *volumes: NDArray[Any]) -> None:
    shapes = {np.shape(volume) for volume in volumes}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        found = ', '.join(str(np.shape(volume)) for volume in volumes)
        raise ScanError(
            f'The images of the figures do not share one 3-D grid ({found}).',
            where=stem,
            fix='Draw images of one space only.',
        )


def _finite(volume: NDArray[Any]) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(volume, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def plan(region: NDArray[np.bool_], affine: NDArray[np.float64], margin: float) -> Layout:
    """Choose the slices inside a region and the crop around it.

    Parameters
    ----------
    region
        What to show, RAS+ axes, shape (X, Y, Z); the whole volume when it is empty.
    affine
        Voxel to world of the RAS+ volume.
    margin
        Space around the region, in mm.
    """
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    start, stop, slices = [], [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(region.any(axis=others))
        low, high = (inside[0], inside[-1]) if inside.size else (0, region.shape[axis] - 1)
        # The outermost tenth shows mere caps of the brain.
        places = low + (high - low) * np.linspace(0.1, 0.9, COLUMNS)
        slices.append(tuple(int(place) for place in np.round(places)))
        border = int(np.ceil(margin / zooms[axis]))
        start.append(max(0, int(low) - border))
        stop.append(min(region.shape[axis], int(high) + border + 1))
    extent = (np.array(stop) - start) * zooms
    scale = min((WIDTH // COLUMNS - _GAP) / max(extent[0], extent[1]), _MAX_PANEL_HEIGHT / max(extent[1:]))
    return Layout(
        affine,
        (start[0], start[1], start[2]),
        (stop[0], stop[1], stop[2]),
        (slices[0], slices[1], slices[2]),
        float(scale),
    )


def mosaic(volume: NDArray[Any], layout: Layout) -> Canvas:
    """Lay the slices of a volume out as one picture, each zoomed bilinearly to its size in mm.

    Parameters
    ----------
    volume
        RAS+ axes, shape (X, Y, Z).
    layout
        What :func:`plan` chose.

    Returns
    -------
    numpy.ndarray
        Shape (height, width), float32, in the units of the volume; 0 between the panels.
    """
    from PIL import Image

    width, height = layout.size
    canvas = np.zeros((height, width), np.float32)
    crop = tuple(slice(low, high) for low, high in zip(layout.start, layout.stop, strict=True))
    for row, index, left, top in layout.boxes():
        through = _ROW_AXES[row][2]
        where: list[Any] = list(crop)
        where[through] = index
        plane = np.ascontiguousarray(volume[tuple(where)].T[::-1], dtype=np.float32)
        size = layout.panel(row)
        panel = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        canvas[top : top + size[1], left : left + size[0]] = panel
    return canvas


def outline(field: Canvas, level: float = 0.5, width: float = 1.4, smooth: float = 0.7) -> Canvas:
    """Return the opacity of an anti-aliased line along an iso-contour.

    Parameters
    ----------
    field
        Shape (height, width).
    level
        Value to follow.
    width
        Width of the line in pixels.
    smooth
        Gaussian smoothing of the field first, standard deviation in pixels.

    Returns
    -------
    numpy.ndarray
        Opacity in [0, 1], same shape.
    """
    field = ndimage.gaussian_filter(field.astype(np.float32), smooth)
    slope = np.hypot(*np.gradient(field))
    steep = slope > 0.02 * max(float(slope.max()), 1e-12)
    distance = np.abs(field - level) / np.maximum(slope, 1e-12)
    return np.where(steep, np.clip(width / 2 + 0.5 - distance, 0, 1), 0).astype(np.float32)


def _window(volume: NDArray[Any], brain: NDArray[np.bool_], shown: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale the 0.5-99.5 percentile of the brain to 0-1; what is not shown is black, whatever 0 means."""
    values = volume[brain] if brain.any() else volume.ravel()
    low, high = np.percentile(values, [0.5, 99.5])
    scaled = np.clip((volume - low) / max(float(high - low), 1e-12), 0, 1)
    return np.where(shown, scaled, 0).astype(np.float32)


def _grey(canvas: Canvas) -> Any:
    from PIL import Image

    return Image.fromarray(np.round(canvas * 255).astype(np.uint8)).convert('RGB')


def _paint(base: NDArray[Any], opacity: Canvas, colour: tuple[int, int, int]) -> NDArray[Any]:
    return base * (1 - opacity[..., None]) + np.array(colour, float) * opacity[..., None]


def _rgb(canvas: Canvas) -> NDArray[Any]:
    return np.repeat(canvas[..., None] * 255.0, 3, axis=2)


def _picture(pixels: NDArray[Any]) -> Any:
    from PIL import Image

    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _contours(labels: NDArray[Any], layout: Layout) -> Any:
    """Draw the WM boundary and the boundary of brain tissue with CSF on a transparent ground."""
    brain = outline(mosaic((labels == 1) | (labels == 2), layout), width=1.2)
    white = outline(mosaic(labels == 2, layout), width=1.2)
    opacity = np.maximum(brain, white)
    colour = _paint(np.broadcast_to(np.array(_BRAIN_COLOUR, float), (*brain.shape, 3)), white, _WM_COLOUR)
    colour[opacity == 0] = 0
    # Few levels of opacity and colour keep the lossless file small.
    steps = np.round(opacity * 7) / 7 * 255
    return _picture(np.dstack([np.round(colour / 16) * 16, steps]))


def _change_map(anatomy: Canvas, change: Canvas) -> Any:
    strength = np.clip(np.abs(change) / CHANGE_LIMIT, 0, 1)
    colour = np.where((change >= 0)[..., None], _HIGHER_COLOUR, _LOWER_COLOUR)
    opacity = (0.95 * strength**0.8)[..., None]
    pixels = _rgb(anatomy * 0.5) * (1 - opacity) + colour * opacity
    return _colour_bar(_picture(pixels))


def _colour_bar(picture: Any) -> Any:
    """Add a strip that says what the colours of the change map mean."""
    from PIL import Image, ImageDraw

    length, thick, strip = 320, 12, 48
    taller = Image.new('RGB', (picture.width, picture.height + strip), 'black')
    taller.paste(picture, (0, 0))
    value = np.linspace(-1, 1, length)
    opacity = 0.95 * np.abs(value)[:, None] ** 0.8
    colours = np.where(value[:, None] >= 0, _HIGHER_COLOUR, _LOWER_COLOUR) * opacity + 90 * (1 - opacity)
    left, top = (picture.width - length) // 2, picture.height + 18
    taller.paste(_picture(np.repeat(colours[None], thick, axis=0)), (left, top))
    draw, font, limit = ImageDraw.Draw(taller), _font(18), round(100 * CHANGE_LIMIT)
    middle = top + thick // 2
    draw.text((left - 12, middle), f'darker  -{limit} %', 'white', font=font, anchor='rm')
    draw.text((left + length + 12, middle), f'+{limit} %  brighter', 'white', font=font, anchor='lm')
    draw.text((left + length // 2, top - 3), '0', 'white', font=font, anchor='md')
    return taller


def _mask_picture(scan: NDArray[np.float32], brain: NDArray[np.bool_], layout: Layout) -> Any:
    pixels = _rgb(mosaic(_window(scan, brain, (scan != 0) | brain), layout))
    return _picture(_paint(pixels, outline(mosaic(brain, layout)), _WM_COLOUR))


def _registration(scan: NDArray[Any], template: NDArray[Any], affine: NDArray[Any] | None, stem: str) -> Any:
    """Draw the scan in template space under the template's contours."""
    _check_grids(stem, scan, template)
    affine = np.eye(4) if affine is None else affine
    moved, fixed = (to_ras(_finite(volume), affine, stem) for volume in (scan, template))
    inside = fixed > 0.02 * max(float(fixed.max()), 0.0)
    layout = plan(inside, _ras_affine(affine, np.shape(template)), margin=8.0)
    pixels = _rgb(mosaic(_window(moved, inside, moved != 0), layout))
    drawn = mosaic(fixed, layout)
    for level, colour in zip(_levels(fixed[inside]), (_BRAIN_COLOUR, _WM_COLOUR), strict=False):
        pixels = _paint(pixels, outline(drawn, level, width=1.2, smooth=1.2), colour)
    return _annotate(_picture(pixels), layout)


def _levels(values: NDArray[Any]) -> list[float]:
    """Return the two thresholds that part a template into CSF, GM and WM."""
    from skimage.filters import threshold_multiotsu

    if np.unique(values[:10000]).size < 8:  # a flat or binary image: its outline is all there is
        return [float(values.max()) / 2] if values.size else []
    return [float(level) for level in threshold_multiotsu(values, classes=3, nbins=128)]


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _annotate(picture: Any, layout: Layout) -> Any:
    """Write the position of every slice, and what the edges of some panels are."""
    from PIL import ImageDraw

    draw, small, large = ImageDraw.Draw(picture), _font(17), _font(22)
    cell = WIDTH // COLUMNS
    for row, index, left, top in layout.boxes():
        column = left // cell
        edge, bottom = column * cell, top + layout.panel(row)[1] - 2
        style: dict[str, Any] = {'stroke_width': 2, 'stroke_fill': 'black'}
        text = f'{"zyx"[row]} {round(layout.position(row, index))}'
        draw.text((edge + 8, top + 2), text, (176, 184, 190), font=small, anchor='lt', **style)
        if column in LABELLED:
            draw.text((edge + 8, bottom), EDGES[row][0], 'white', font=large, anchor='ls', **style)
            draw.text((edge + cell - 8, bottom), EDGES[row][1], 'white', font=large, anchor='rs', **style)
    return picture


def _save(picture: Any, path: Path, *, lossless: bool) -> Path:
    with atomic_path(path) as partial:
        picture.save(partial, format='WEBP', quality=100 if lossless else 82, method=4, lossless=lossless)
    return path
