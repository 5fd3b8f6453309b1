"""The limits of the simulator that its page tells are those of the program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.simulation import dataset
from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.heads import LABELS, load_labels, load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import Scanner
from bidsharm.simulation.rendering import render, smooth_to

PAGE = Path(__file__).parents[2] / 'docs' / 'simulator.md'


def told(words: str) -> bool:
    """Say whether the page tells something where it tells what the simulator does not do."""
    return words in ' '.join(PAGE.read_text(encoding='utf-8').partition('## What it does not do')[2].split())


def air(shape: tuple[int, int, int], **protocol: object) -> np.ndarray:
    """Return a scan of nothing: noise, whatever is measured of k-space."""
    first = PRESETS[0]
    changed = replace(first.protocol('T1w'), snr=2.0, scale=8000.0, **protocol)
    scanner = Scanner('quiet', 'a', 'b', first.hardware, (changed,))
    anatomy = Anatomy(np.zeros((len(TISSUES), *shape), dtype=np.float32), np.eye(4))
    return acquire(anatomy, scanner, 'T1w', np.random.default_rng(0)).stored.astype(float)


@pytest.mark.parametrize(
    'protocol',
    [{'measured_fraction': (0.5, 0.5, 0.5)}, {'taper': 1.0}, {'partial_fourier': 0.6}],
    ids=['zeros', 'taper', 'partial'],
)
def test_noise_is_white_whatever_was_measured(protocol):
    assert told('Noise is white')
    noise = air((48, 48, 48), **protocol)
    power = np.abs(np.fft.fftn(noise - noise.mean())) ** 2
    lines = np.abs(np.fft.fftfreq(48))
    outer = power[:, lines > 0.3].mean() / power[:, lines < 0.2].mean()
    assert outer == pytest.approx(1, abs=0.03)


def sheet() -> Anatomy:
    """White matter that is a millimetre thick, across the third axis."""
    fractions = np.zeros((len(TISSUES), 8, 8, 16), dtype=np.float32)
    fractions[TISSUES.index('WM'), :, :, 4] = 1
    return Anatomy(fractions, np.eye(4))


@pytest.mark.parametrize(('planes', 'seen'), [(1, 0.0), (4, 0.25)])
def test_thick_slices_of_a_volume_are_sampled_in_their_middle(planes, seen):
    assert told('Thick slices of a volume are sampled in their middle')
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[2, 3] = 1.5
    blurred = smooth_to(sheet(), 1.0)  # to the smallest side of the voxels
    image = render(blurred, shape=(8, 8, 4), affine=affine, slice_factor=planes).part('WM')
    assert image[4, 4, 1] == pytest.approx(seen)


def test_volumes_that_average_planes_are_named():
    averaging = [
        s.label for s in PRESETS for p in s.protocols if p.acquisition_type == '3D' and p.slice_factor > 1
    ]
    assert told(f'(of the built-in scanners {" and ".join(dict.fromkeys(averaging))})')


def test_vessels_are_those_of_the_label_map(label_map, tmp_path):
    assert told('Vessels are there only where the label map has them')
    assert not load_template(step=3).part('vessel').any()
    assert not load_labels(label_map).part('vessel').any()
    path = with_vessel(label_map, tmp_path / 'v.nii.gz')
    assert load_labels(path).part('vessel').max() > 0.5
    assert told('with `--brain-only`, and where the map has no scalp, they are left out')
    assert not load_labels(path, head=False).part('vessel').any()
    brain = with_vessel(label_map, tmp_path / 'b.nii.gz', scalp=False)
    assert not load_labels(brain).part('vessel').any()


def with_vessel(source: Path, out: Path, *, scalp: bool = True) -> Path:
    """Put a vessel into the middle of the brain of a label map."""
    image = nib.load(source)
    data = np.asarray(image.dataobj).copy()
    middle = np.array(ndimage.center_of_mass(data == 2)).astype(int)
    data[tuple(slice(place - 1, place + 2) for place in middle)] = LABELS['vessel'][0]
    if not scalp:
        data[data == 511] = 0
    nib.Nifti1Image(data, image.affine).to_filename(out)
    return out


@pytest.mark.parametrize(('resolution', 'step'), [(0.0, 1), (1.5, 1), (2.0, 2), (3.9, 3)])
def test_the_template_is_read_in_whole_millimetres_of_the_resolution(tmp_path, monkeypatch, resolution, step):
    assert told('The template is averaged to blocks')
    steps = []

    def read(*, head: bool, step: int) -> Anatomy:
        steps.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, 'load_template', read)
    with pytest.raises(KeyboardInterrupt):
        dataset.simulate(tmp_path / 'out', subjects=1, scanners=PRESETS[:1], resolution=resolution)
    assert steps == [step]
