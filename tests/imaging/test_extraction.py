"""deepbet on a simulated head, and what it says where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import deepbet
import nibabel as nib
import numpy as np
import pytest
import torch

from bidsharm.errors import ScanError
from bidsharm.imaging.extraction import deepbet_mask


def test_the_brain_of_a_simulated_head(head, overlap, write_image, tmp_path):
    file, out = write_image(tmp_path / 'head.nii', head.data, head.affine), tmp_path / 'mask.nii'
    before = file.read_bytes()
    answer = deepbet_mask(file, out)
    image = nib.load(out)
    mask = np.asarray(image.dataobj)
    assert image.get_data_dtype() == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_allclose(image.affine, head.affine, atol=1e-5)
    assert overlap(mask > 0, head.mask) > 0.95
    assert answer['volume_ml'] == pytest.approx((mask > 0).sum() * 27 / 1000)
    assert answer['volume_ml'] == pytest.approx(head.mask.sum() * 27 / 1000, rel=0.1)
    assert file.read_bytes() == before


@pytest.mark.parametrize('value', [0.0, 300.0])
def test_an_empty_image_has_no_brain(value, write_image, tmp_path):
    data = np.full((40, 40, 40), value, np.float32)
    file = write_image(tmp_path / 'empty.nii', data, np.diag([4.0, 4, 4, 1]))
    with pytest.raises(ScanError, match='found no brain') as caught:
        deepbet_mask(file, tmp_path / 'mask.nii')
    assert '--brain-extraction ants' in caught.value.fix
    assert not (tmp_path / 'mask.nii').exists()


class _Network:
    """Stands for deepbet, and records where it was told to run."""

    error: Exception
    no_gpu: bool

    def __init__(self, *, no_gpu: bool) -> None:
        type(self).no_gpu = no_gpu

    def run(self, image: nib.Nifti1Image) -> None:
        raise self.error


@pytest.fixture
def cards(monkeypatch) -> list[int]:
    """Stand for PyTorch's choice of a card; the last number in the list is the current one."""
    chosen = [0]

    @contextlib.contextmanager
    def choose(number: int) -> Iterator[None]:
        chosen.append(number)
        yield
        chosen.append(0)

    monkeypatch.setattr(torch.cuda, 'device', choose)
    return chosen


@pytest.mark.parametrize(('device', 'number'), [('cuda:1', 1), ('cuda:0', 0), ('cuda', 0), ('cpu', None)])
def test_deepbet_runs_on_the_card_that_was_asked_for(
    device, number, cards, monkeypatch, write_image, tmp_path
):
    """A fake network on fake cards: deepbet itself takes what is current when it is made and run."""
    seen: list[tuple[str, int]] = []

    class Network:
        def __init__(self, *, no_gpu: bool) -> None:
            assert no_gpu == (device == 'cpu')
            seen.append(('made', cards[-1]))

        def run(self, image: nib.Nifti1Image) -> tuple[None, nib.Nifti1Image, float]:
            seen.append(('run', cards[-1]))
            return None, nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), 1.0

    monkeypatch.setattr(deepbet, 'BrainExtraction', Network)
    file = write_image(tmp_path / 'x.nii', np.ones((9, 9, 9), np.float32))
    deepbet_mask(file, tmp_path / 'mask.nii', device=device)
    assert seen == [('made', number or 0), ('run', number or 0)]
    assert cards == ([0] if number is None else [0, number, 0])


@pytest.mark.parametrize(
    ('device', 'error', 'words'),
    [
        (
            'cpu',
            AssertionError('Not enough foreground\nand more'),
            'found no brain in it (Not enough foreground)',
        ),
        ('cpu', IndexError(), 'found no brain in it (IndexError)'),
        (
            'cuda:0',
            RuntimeError('CUDA out of memory. Tried to allocate'),
            'memory of cuda:0 does not suffice',
        ),
        (
            'cpu',
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            'not enough memory for deepbet',
        ),
    ],
)
def test_what_goes_wrong_is_named(device, error, words, cards, monkeypatch, write_image, tmp_path):
    monkeypatch.setattr(deepbet, 'BrainExtraction', _Network)
    monkeypatch.setattr(_Network, 'error', error, raising=False)
    file: Path = write_image(tmp_path / 'x.nii', np.ones((9, 9, 9), np.float32))
    with pytest.raises(ScanError) as caught:
        deepbet_mask(file, tmp_path / 'mask.nii', device=device)
    assert words in caught.value.what
    assert '\n' not in caught.value.what
    assert caught.value.fix
    assert _Network.no_gpu == (device == 'cpu')
