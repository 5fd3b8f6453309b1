"""One simulated head in six of the built-in scanners, its truth, and errors one at a time: the picture of docs/simulator.md.

A person made of the MNI152 template, as `bidsharm-simulate` draws the first one at the same seed and resolution, in one axial slice. Grey levels
go from 0 to the 99.5th percentile of the brain. Errors are put on the noiseless T1w of the first scanner, and are larger than usual ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

PICTURE = Path(__file__).parents[1] / 'docs' / 'images' / 'simulator.webp'
SCANNERS = ('northA', 'coastE', 'meadowJ', 'clinicL', 'portableV', 'ultraX')
CONTRASTS = ('T1w', 'FLAIR')
SEED = 1
#: Height of the slice, and what is shown of it: left, right, back and front (RAS mm).
HEIGHT_MM, SHOWN_MM = 8.0, (-82.0, 82.0, -112.0, 84.0)
#: Colours of tissues, which mix as their fractions do.
COLOURS = {'WM': (0.95, 0.95, 0.95), 'GM': (0.84, 0.37, 0.0), 'CSF': (0.0, 0.45, 0.7)}


def index_of(image: Any) -> int:
    """Return the number of the slice next to the height."""
    return round(float((HEIGHT_MM - image.affine[2, 3]) / image.affine[2, 2]))


def slice_of(file: Path) -> tuple[Any, tuple[float, float, float, float]]:
    """Return the slice of an image next to the height, and its edges in mm."""
    import nibabel as nib

    image = nib.load(file)
    (x, y), (left, back) = image.header.get_zooms()[:2], image.affine[:2, 3]
    tile = np.asarray(image.dataobj[:, :, index_of(image)], dtype=np.float32)
    edges = (left - x / 2, left + x * (len(tile) - 0.5), back - y / 2, back + y * (tile.shape[1] - 0.5))
    return tile, edges


def grey(tile: Any, truth: Path) -> Any:
    """Return a slice in grey levels from 0 to 1, by the brain that the truth of its session has on its grid."""
    brains = [slice_of(file)[0] for file in sorted(truth.glob('*rain_mask.nii.gz'))]
    brain = next(brain for brain in brains if brain.shape == tile.shape)
    return np.clip(tile / np.percentile(tile[brain > 0], 99.5), 0, 1)


def places(folder: Path, scanner: str) -> tuple[Path, Path, str]:
    """Return the folders of a session and of its truth, and what its files begin with."""
    place = Path('sub-01', f'ses-{scanner}', 'anat')
    return folder / place, folder / 'derivatives' / 'truth' / place, f'sub-01_ses-{scanner}'


def scan_of(folder: Path, scanner: str, contrast: str) -> tuple[Any, Any]:
    """Return slice and edges of a scan."""
    scans, truth, stem = places(folder, scanner)
    tile, edges = slice_of(scans / f'{stem}_{contrast}.nii.gz')
    return grey(tile, truth), edges


def fractions(folder: Path, scanner: str) -> tuple[Any, Any]:
    """Return slice and edges of the tissue fractions, in colours."""
    _, truth, stem = places(folder, scanner)
    parts = [slice_of(truth / f'{stem}_label-{tissue}_probseg.nii.gz') for tissue in COLOURS]
    tiles = np.stack([tile for tile, _ in parts], axis=-1)
    return np.clip(tiles @ np.array(list(COLOURS.values())), 0, 1), parts[0][1]


def canonical(folder: Path, scanner: str, contrast: str) -> tuple[Any, Any]:
    """Return slice and edges of the head in the canonical scanner."""
    _, truth, stem = places(folder, scanner)
    tile, edges = slice_of(truth / f'{stem}_desc-canonical_{contrast}.nii.gz')
    return grey(tile, truth), edges


def errors(spacing: tuple[float, float, float]) -> dict[str, Callable[[Any], Any]]:
    """Return errors by name, as functions of an image whose white matter is 1."""
    import torch

    from bidsharm.simulation import artefacts

    def chance() -> Any:
        return torch.Generator().manual_seed(SEED)

    def receive(image: Any) -> Any:
        shape = tuple(image.shape)
        return image * artefacts.receive_field(shape, spacing, coils=8, strength=0.7, generator=chance())

    def gradients(image: Any) -> Any:
        field = artefacts.gradient_displacement(
            tuple(image.shape), spacing, millimetres=60.0, generator=chance()
        )
        return artefacts.apply_displacement(image, field, spacing, jacobian=True)

    return {
        'no error': lambda image: image,
        'receive field': receive,
        'noise': lambda image: artefacts.add_rician(image, sigma=0.12, generator=chance()),
        'motion': lambda image: artefacts.motion(
            image, spacing, degrees=5.0, millimetres=5.0, events=3, axis=1, generator=chance()
        ),
        'ghosts': lambda image: artefacts.ghosting(image, intensity=0.4, count=2, axis=1),
        'zero-filling': lambda image: artefacts.kspace_window(image, resolution_fraction=(0.35, 0.35, 1.0)).abs(),
        'gradients': gradients,
    }  # fmt: skip


def with_errors(folder: Path) -> dict[str, Any]:
    """Return slices and edges of the noiseless T1w of the first scanner, with every error alone."""
    import nibabel as nib
    import torch

    _, truth, stem = places(folder, SCANNERS[0])
    file = truth / f'{stem}_desc-noiseless_T1w.nii.gz'
    image, edges = nib.load(file), slice_of(file)[1]
    white = np.asarray(nib.load(truth / f'{stem}_label-WM_probseg.nii.gz').dataobj) > 0.99
    data = np.asarray(image.dataobj, dtype=np.float32)
    volume = torch.from_numpy(data / np.median(data[white]))
    x, y, z = (float(size) for size in image.header.get_zooms())
    index = index_of(image)
    return {
        name: (grey(change(volume)[:, :, index].numpy(), truth), edges)
        for name, change in errors((x, y, z)).items()
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw rows of tiles with their titles."""
    columns = max(len(row) for row in rows)
    figure, panels = common.pyplot().subplots(len(rows), columns, figsize=(1.25 * columns, 1.75 * len(rows)))
    for panel in panels.flat:
        panel.axis('off')
    left, right, back, front = SHOWN_MM
    for line, row in zip(panels, rows, strict=True):
        for panel, (title, (tile, edges)) in zip(line, row.items(), strict=False):
            picture = np.swapaxes(tile, 0, 1)
            panel.imshow(picture, cmap='gray', vmin=0, vmax=1, origin='lower', extent=edges)
            panel.set(xlim=(left, right), ylim=(back, front))
            panel.set_title(title, fontsize=7)
    common.keep_picture(figure, PICTURE, pad=0.3)


def main() -> None:
    from bidsharm.simulation.dataset import simulate
    from bidsharm.simulation.presets import PRESETS

    arguments = common.parser(__doc__)
    arguments.add_argument('--resolution', type=float, default=1.0, help='of the scans (mm)')
    args = arguments.parse_args()
    scanners = [scanner for name in SCANNERS for scanner in PRESETS if scanner.label == name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(
            folder, subjects=1, scanners=scanners, contrasts=CONTRASTS, resolution=args.resolution, seed=SEED
        )
        rows = [
            {f'{s.label}, {contrast}': scan_of(folder, s.label, contrast) for s in scanners}
            for contrast in CONTRASTS
        ]
        rows[0]['tissue fractions'] = fractions(folder, SCANNERS[0])
        rows[1]['canonical FLAIR'] = canonical(folder, SCANNERS[0], 'FLAIR')
        draw([*rows, with_errors(folder)])
    print(PICTURE)


if __name__ == '__main__':
    main()
