"""The table of travelling heads: what is kept, and the U-Net beside `isotone`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bidsharm.harmonizers.contract import Scan
from bidsharm.nn.isotone_unet import CanonicalUNet


@pytest.fixture
def travelling(benchmark_script: Any) -> Any:
    return benchmark_script('travelling')


@pytest.fixture
def train_unet(benchmark_script: Any) -> Any:
    return benchmark_script('train_unet')


@pytest.fixture
def scan() -> Scan:
    """A ball whose brightness grows from left to right, in voxels of 2 mm."""
    places = np.indices((20, 22, 24))
    mask = sum((axis - 10.5) ** 2 for axis in places) < 81
    data = np.where(mask, 100.0 + 10.0 * places[0], 0.0).astype(np.float32)
    return Scan(data, mask, np.diag([2.0, 2.0, 2.0, 1.0]), 'T1w', 'ball')


def test_only_images_that_are_missing_are_written_again(travelling: Any, scan: Scan, tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan.data, scan.affine)
    box = (slice(0, 20), slice(0, 22), slice(0, 24))
    first, second = (
        travelling.Travelled(person, 'northA', scan, scan.data, box, image) for person in ('sub-01', 'sub-02')
    )
    travelling.write(first, scan.data, tmp_path, 1.0)
    assert travelling.missing([first, second], tmp_path, keep=True) == [second]
    assert travelling.missing([first, second], tmp_path, keep=False) == [first, second]


def test_the_u_net_sees_a_scan_in_its_units_and_writes_on_its_voxels(
    train_unet: Any, scan: Scan, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = CanonicalUNet()
    for part in net.last[-1].parameters():
        torch.nn.init.zeros_(part)  # its change is 0: what comes out is what it saw
    file = tmp_path / 'net.safetensors'
    about = {'seconds': '60', 'scans': '200', 'seed': '1'}
    save_file({name: value.half() for name, value in net.state_dict().items()}, file, about)
    assert train_unet.told(file) == {'seconds': 60, 'scans': 200}
    found = train_unet.harmonize(train_unet.load(file), scan)
    assert not found[~scan.mask].any()
    inside, before = found[scan.mask], scan.data[scan.mask]
    slope, _ = np.polyfit(before, inside, 1)
    assert slope == pytest.approx(1 / (np.quantile(before, 0.9) - np.quantile(before, 0.005)), rel=0.05)
    assert np.corrcoef(before, inside)[0, 1] > 0.99


def test_the_brightness_of_a_person_is_told_from_other_errors(
    benchmark_script: Any, travelling: Any, scan: Scan, tmp_path: Path
) -> None:
    brightness = benchmark_script('brightness')
    image = nib.Nifti1Image(scan.data, scan.affine)
    box = (slice(0, 20), slice(0, 22), slice(0, 24))
    noise = np.random.default_rng(0).normal(0, 5, scan.data.shape).astype(np.float32)
    found = np.zeros((2, 3, 3))
    for person, factor in enumerate((0.8, 1.0)):
        for visit in range(3):
            item = travelling.Travelled(f'sub-{person}', f'{visit}', scan, scan.data, box, image)
            made = (scan.data / factor + np.roll(noise, visit, axis=0)) * scan.mask
            travelling.write(item, made, tmp_path / 'method', 1.0)
            found[person, visit] = brightness.measured(item, tmp_path, 'method')
    assert found[..., 2] == pytest.approx(np.array([[0.8] * 3, [1.0] * 3]), rel=0.01)
    before, after = found[..., 0], found[..., 1]
    assert (after[0] > before[0] + 10).all()
    assert after[1] == pytest.approx(before[1], abs=0.1)
    row = brightness.row_of('method', found, seed=0)
    assert row['people'] == pytest.approx(0.2 / np.sqrt(2), rel=0.05)
    assert row['visits'] < 0.01
