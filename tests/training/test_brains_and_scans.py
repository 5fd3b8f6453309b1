"""Brains and scans to train on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsharm.imaging.lowres import SHAPE, SIZE_MM
from bidsharm.simulation.relaxation import relaxation
from bidsharm.training.brains import KINDS, Brain, draw_brains
from bidsharm.training.isotone import (
    POINTS,
    Trainer,
    Verdicts,
    losses,
    make_example,
    stream,
    train_judge,
    try_out,
)
from bidsharm.training.scans import ScanSource, canonical_signals, draw_signals


@pytest.fixture(scope='session')
def label_map(tmp_path_factory) -> Path:
    """An egg of white matter in cortex in fluid, with a ventricle and a nucleus, as a label map of 2 mm."""
    shape = (60, 76, 60)
    points = np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2
    away = np.sqrt((points[0] / 22) ** 2 + (points[1] / 28) ** 2 + (points[2] / 22) ** 2)
    labels = np.select([away < 0.8, away < 0.95, away < 1.0], [2, 3, 24], 0)
    labels[26:34, 30:46, 26:34] = 4
    labels[20:24, 34:42, 26:34] = 11
    path = tmp_path_factory.mktemp('maps') / 'egg.nii.gz'
    nib.Nifti1Image(labels.astype(np.int16), np.diag([2.0, 2, 2, 1])).to_filename(path)
    return path


@pytest.fixture(scope='session')
def brains(label_map) -> list[Brain]:
    return list(draw_brains([label_map], 3, seed=1))


@pytest.fixture
def source(brains) -> ScanSource:
    return ScanSource(brains, 'T1w', seed=3, scanners=40)


def test_brains_hold_what_the_map_holds(brains, label_map):
    labels = np.asarray(nib.load(label_map).dataobj)
    for brain in brains:
        volume = brain.fractions.sum(axis=1) / 255 * SIZE_MM**3
        assert volume[KINDS.index('WM')] == pytest.approx(
            (labels == 2).sum() * 8, rel=0.35
        )  # people differ in size
        assert volume[KINDS.index('GM')] > volume[KINDS.index('deep GM')] > 0
        assert volume[KINDS.index('CSF')] > 0.3 * (labels == 4).sum() * 8
        assert brain.fractions.shape[1] == np.count_nonzero(brain.inside)
        assert brain.fractions.sum(axis=0).max() <= 258
        assert (brain.texture / 32).std() == pytest.approx(1, abs=0.15)
    assert len({brain.fractions.shape[1] for brain in brains}) == 3
    assert all(20 <= brain.age <= 80 for brain in brains)


def test_brains_come_back_from_files(brains, tmp_path):
    brains[0].save(tmp_path / 'b.npz')
    again = Brain.load(tmp_path / 'b.npz')
    for name in ('inside', 'fractions', 'texture', 'anatomy', 'age'):
        np.testing.assert_array_equal(getattr(again, name), getattr(brains[0], name))


def test_the_same_seed_draws_the_same_brains(label_map, brains):
    again = next(draw_brains([label_map], 3, seed=1))
    np.testing.assert_array_equal(again.fractions, brains[0].fractions)
    other = next(draw_brains([label_map], 3, seed=2))
    assert other.fractions.shape != again.fractions.shape


def test_signals_are_those_of_the_equations():
    drawn = draw_signals('T1w', 30, seed=0)
    middle = drawn.signal.shape[2] // 2
    white = drawn.signal[:, 4, middle].abs()
    torch.testing.assert_close(white, torch.ones(30))
    grey = drawn.signal[:, 2, middle].abs()
    assert ((grey > 0.3) & (grey < 0.97)).all()  # what T1w means
    # A longer T1 makes grey matter darker in every T1w.
    assert (drawn.slope[:, 2, middle] < 0).all()
    signal, _ = canonical_signals('T1w')
    assert 0.55 < float(signal[2]) < 0.7
    assert relaxation('GM', 3.0).t1 > relaxation('WM', 3.0).t1


def test_a_scan_and_its_truth(source):
    gains = []
    for _ in range(12):
        scan = source.draw()
        count = len(scan.values)
        assert count > 10_000
        assert all(
            len(part) == count
            for part in (scan.clean, scan.canonical, scan.log_gain, scan.voxels, scan.true_mask)
        )
        assert (scan.voxels >= 0).all()
        assert (scan.voxels < torch.tensor(SHAPE)).all()
        assert torch.isfinite(scan.values).all()
        white = (scan.tissue[2] > 0.99) & scan.true_mask
        # White matter differs in the clean scan by the gain, by texture and by flip angles, in the canonical one by texture only.
        assert spread(scan.canonical[white]) < 0.04
        plain = scan.clean[white] / torch.exp(scan.log_gain[white])
        assert spread(plain) < 0.06
        gains.append(spread(torch.exp(scan.log_gain[white])))
    assert max(gains) > 0.04


def spread(values: torch.Tensor) -> float:
    """Return half the width that two of three values lie in, over their median; lesions do not matter."""
    low, middle, high = torch.quantile(values, torch.tensor([0.17, 0.5, 0.83]))
    return float((high - low) / 2 / middle)


#: Tissues (0 CSF, 1 GM, 2 WM) from dark to bright.
ORDERS = {'T1w': (0, 1, 2), 'T2w': (2, 1, 0), 'FLAIR': (0, 2, 1), 'PDw': (2, 0, 1)}


@pytest.mark.parametrize('contrast', ORDERS)
def test_tissues_have_their_order_and_units_are_those_of_robust_scaling(brains, contrast):
    scans = ScanSource(brains, contrast, seed=2, scanners=60)
    for _ in range(3):
        scan = scans.draw()
        medians = [float(scan.canonical[scan.tissue[k] > 0.98].median()) for k in range(3)]
        assert tuple(np.argsort(medians)) == ORDERS[contrast]
        bright = float(torch.quantile(scan.canonical[scan.true_mask], 0.9))
        # fluid of sulci is what is brightest in T2w, and people have more or less of it
        assert bright == pytest.approx(1, abs=0.6 if contrast == 'T2w' else 0.1)


@pytest.mark.parametrize('contrast', ORDERS)
def test_a_brain_of_strange_colours_has_another_order(brains, contrast):
    scans = ScanSource(brains, contrast, seed=3, scanners=60)
    usual = {
        'T1w': lambda fluid, grey, white: fluid < 0.9 * grey and grey < 0.95 * white,
        'T2w': lambda fluid, grey, white: white < 0.9 * grey and grey < 0.9 * fluid,
        'FLAIR': lambda fluid, grey, white: fluid < 0.7 * white and 1.05 * white < grey,
        'PDw': lambda fluid, grey, white: white < 0.9 * grey and 0.8 * white < fluid < 2 * white,
    }[contrast]
    assert torch.isfinite(scans._recoloured().values).all()
    drawn = [scans._colours() for _ in range(200)]
    assert not any(usual(*levels) for levels in drawn)
    assert np.ptp(np.array(drawn), axis=0).min() > 0.7


def test_a_scan_of_another_contrast_has_its_order(brains):
    from bidsharm.training import scans as room

    assert all(name not in others for name, others in room._MISTAKEN.items())
    source = ScanSource(brains, 'T2w', seed=6, scanners=20)
    ranks = set()
    for _ in range(12):
        scan = source._mistaken()
        assert not scan.canonical.any()
        assert all(other.brains == source.brains for other in source._others.values())
        low, bright = (float(torch.quantile(scan.values, q)) for q in (0.05, 0.9))
        ranks.add(low < 0.7 * bright)  # fluid is dark, where a T2w has it bright
    assert True in ranks
    assert set(source._others) == {'T1w', 'FLAIR'}


def test_inflowing_fluid_is_bright_in_places_and_nothing_else_is(brains):
    scans = ScanSource(brains, 'FLAIR', seed=4, scanners=10)
    _, flat, mixture, _, _ = scans._place(0)
    fluid = mixture[0] + mixture[1]
    shares = []
    for _ in range(8):
        added = scans._inflow(mixture, flat)
        assert (added >= 0).all()
        assert added[fluid == 0].abs().max() == 0
        shares.append(float((added[fluid > 0.9] > 0).float().mean()))
    assert any(0.02 < share < 0.98 for share in shares)


def test_the_same_seed_gives_the_same_scans(brains):
    first, second = (ScanSource(brains, 'T1w', seed=5, scanners=10).draw() for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert not torch.equal(ScanSource(brains, 'T1w', seed=6, scanners=10).draw().values, first.values)


def test_examples(source):
    generator = torch.Generator().manual_seed(0)
    scan = source.draw()
    example = make_example(scan, generator)
    assert example.places.shape == (POINTS, 3)
    assert example.places.abs().max() <= 1
    assert example.cells[:, 0, 0, 0].abs().sum() == 0
    shares = example.cells[22]
    assert shares.sum() * 64 == pytest.approx(len(scan.values), rel=1e-5)
    cell_tissue = example.tissue
    assert (cell_tissue[:3].sum(dim=0) <= 1.02).all()
    # Intensities in units of the scan: 0.5 and 90 % lie at 0 and 1.
    assert torch.quantile(example.noisy, 0.9) == pytest.approx(1, abs=0.1)


def test_a_few_steps_teach_something(source):
    from bidsharm.nn.isotone import IsotoneNet

    torch.manual_seed(0)
    net = IsotoneNet(width=16, depth=(1, 1))
    batch = next(stream(source, batch=4, seed=1, workers=0))
    before = losses(net, batch)[0]
    trainer = Trainer(net, rate=3e-3, warm_up=5)
    for number in range(25):
        said = trainer.step(batch, number / 60)
    after = losses(net, batch)[0]
    assert float(after['image']) < 0.8 * float(before['image'])
    assert float(after['tissue']) < float(before['tissue'])
    assert said['psnr'] > 15
    assert any(
        not torch.equal(a, b) for a, b in zip(trainer.average.parameters(), net.parameters(), strict=True)
    )


def test_an_interrupted_training_goes_on_where_it_was(source, tmp_path):
    from bidsharm.nn.isotone import IsotoneNet

    torch.manual_seed(0)
    batch = next(stream(source, batch=2, seed=1, workers=0))
    straight, interrupted = (Trainer(IsotoneNet(width=16, depth=(1, 1)), warm_up=1) for _ in range(2))
    interrupted.resume(straight.state())
    for trainer in (straight, interrupted):
        for number in range(2):
            trainer.step(batch, number / 4)
    torch.save(interrupted.state(), tmp_path / 'train.part')
    resumed = Trainer(IsotoneNet(width=16, depth=(1, 1)), warm_up=1)
    resumed.resume(torch.load(tmp_path / 'train.part', weights_only=True))
    for trainer in (straight, resumed):
        trainer.step(batch, 0.5)
    for one, other in zip(straight.average.parameters(), resumed.average.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert resumed.step_number == straight.step_number == 3


def test_strange_scans_are_strange_and_a_judge_learns_it(brains):
    from bidsharm.nn.isotone import IsotoneNet
    from bidsharm.nn.isotone_model import Reader

    torch.manual_seed(0)
    net = IsotoneNet(width=16, depth=(1, 1))
    source = ScanSource(brains, 'T1w', seed=8, scanners=40)
    verdicts = try_out(Reader(net), source, 120)
    assert verdicts.strange.sum() == 60
    assert torch.isfinite(verdicts.own).all()
    usual = ~verdicts.strange
    assert 0.01 < float(verdicts.robust[usual].median()) < 0.4
    judge = train_judge(verdicts, seed=0, steps=200)
    said = judge(verdicts.features, verdicts.histograms)
    right = ((said[:, 2] > 0) == verdicts.strange).float().mean()
    assert right > 0.85
    errors = torch.log(verdicts.robust[usual])
    assert np.corrcoef(said[usual, 1].detach(), errors)[0, 1] > 0.5


def test_jitter_blurs_what_is_strange_and_not_how_large_errors_are():
    from bidsharm.nn.isotone import GLOBAL_BINS, HISTOGRAMS

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator)
    strange = features[:, 0] > 0
    own = torch.exp(0.3 * features[:, 1] - 3)
    verdicts = Verdicts(features, torch.zeros(400, HISTOGRAMS * GLOBAL_BINS), own, own * 2, strange)
    clear, blurred = (train_judge(verdicts, seed=0, steps=300, jitter=size) for size in (0.0, 30.0))
    with torch.inference_mode():
        said = [judge(verdicts.features, verdicts.histograms) for judge in (clear, blurred)]
    doubt = [torch.nn.functional.binary_cross_entropy_with_logits(one[:, 2], strange.float()) for one in said]
    assert doubt[0] < 0.1 < 0.4 < doubt[1]
    for one in said:
        assert np.corrcoef(one[~strange, 0], own[~strange].log())[0, 1] > 0.95
