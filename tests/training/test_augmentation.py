"""Random changes of examples: known transforms, pairs that stay pairs, a background that stays, and nothing where nothing is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsharm.training.augmentation import Augmentation, Change, rotation
from bidsharm.training.regimes import AnyScan, Domains, Paired, Travellers, Unpaired, Visits
from bidsharm.training.views import Patches, Place, Slices, View, Whole
from bidsharm.training.volumes import TrainingSet, TrainingVolume

SHAPE = (32, 48, 16)
STRONG = Augmentation(gamma=0.5, gain=0.5, angle=20, scale=0.2)


def ramp(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return a linear function of the place, which linear interpolation gives back exactly."""
    i, j, k = np.indices(shape)
    return (1 + 0.5 * i + 0.25 * j + 0.125 * k).astype(np.float32)


def ball(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    places = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    return np.asarray(sum(axis**2 for axis in np.meshgrid(*places, indexing='ij')) < 0.7)


def volume(values: np.ndarray, mask: np.ndarray, site: str = 'A', contrast: str = 'T1w') -> TrainingVolume:
    tissue = np.where(mask, 1 + np.indices(mask.shape).sum(axis=0) % 3, 0).astype(np.uint8)
    return TrainingVolume(values, mask, f'{site}{contrast}', 'P', site, site, contrast, tissue)


def scans(background: float = 0.0) -> TrainingSet:
    """Return one person at two sites with two contrasts: B shows everything four times as bright as A."""
    mask = ball()
    return TrainingSet(
        [
            volume(np.where(mask, gain * ramp(), np.float32(background)).astype(np.float32), mask, site, contrast)
            for site, gain in (('A', 1), ('B', 4)) for contrast in ('T1w', 'T2w')
        ],
        background,
    )  # fmt: skip


def test_without_augmentation_batches_are_those_of_before_there_was_any() -> None:
    everything = np.ones(SHAPE, bool)
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    data = TrainingSet([
        TrainingVolume(
            (100_000 * (4 * person + 2 * 'AB'.index(site) + (contrast == 'T2w') + 1) + values).astype(np.float32), everything,
            f'{person}{site}{contrast}', str(person), site, site, contrast,
        )
        for person in range(3) for site in 'AB' for contrast in ('T1w', 'T2w')
    ])  # fmt: skip

    def first(kind: type, view: View) -> dict[str, list[float]]:
        batch = kind(data, view, batch=3, target='A').draw(np.random.default_rng(5))
        return {name: batch[name].flatten(1)[:, 0].tolist() for name in 'xy' if name in batch}

    # Written down before examples could be changed: the first voxel of each image says which scan, which place, and whether it is mirrored.
    assert first(Paired, Slices()) == {
        'x': [1100012.0, 723816.0, 1223808.0],
        'y': [900012.0, 523816.0, 1023808.0],
    }
    assert first(Unpaired, Patches(8)) == {
        'x': [1100488.0, 1105864.0, 300004.0],
        'y': [905864.0, 905864.0, 100004.0],
    }
    assert first(Domains, Slices((0, 1, 2))) == {
        'x': [1023812.0, 223811.0, 823814.0],
        'y': [1023812.0, 223811.0, 1000006.0],
    }
    assert first(AnyScan, Slices((0, 1))) == {'x': [1000016.0, 824016.0, 524240.0]}


@pytest.mark.parametrize('view', [Slices(), Whole(), Patches(8)])
@pytest.mark.parametrize('mirrored', [False, True])
def test_a_piece_is_turned_and_scaled_about_its_middle(view: View, mirrored: bool) -> None:
    turns = np.array([0.2]) if view.dims == 2 else np.array([0.2, -0.1, 0.15])
    matrix = rotation(turns) / 1.1
    sampler = AnyScan(scans(), view, batch=1)
    sampler.change = Change(matrix=matrix)
    place = (
        Place(2, (7, 0, 0))
        if view.dims == 2
        else Place(-1, (6, 20, 4) if isinstance(view, Patches) else (0, 0, 0))
    )
    whole = volume(ramp(), np.ones(SHAPE, bool))
    found, mask = (part(whole, place, mirrored)[0] for part in (sampler.image, sampler.mask))
    plain = view.cut(ramp(), place)[0]
    if mirrored:
        plain = plain[::-1]
    # The plain piece is linear too, so where the changed one takes its values from follows from the middle and the slopes.
    middle = (np.array(plain.shape) - 1) / 2
    slopes = [np.diff(plain, axis=axis).mean() for axis in range(plain.ndim)]
    offsets = np.moveaxis(np.indices(plain.shape), 0, -1) - middle
    expected = plain.mean() + (offsets @ matrix.T) @ np.array(slopes)
    inside = mask > 0
    if isinstance(view, Patches):
        assert inside.all()  # what lies around the cube is there
    # Half a voxel from the border of the volume, there is no neighbour to interpolate with.
    source = offsets @ matrix.T + middle
    if not isinstance(view, Patches):
        border = np.array(plain.shape) - 1
        inside &= ((source >= 0) & (source <= border)).all(axis=-1)
        assert 0.7 < inside.mean() < 1
    assert np.allclose(found[inside], expected[inside], atol=2e-3)


def test_scaling_up_makes_a_ball_larger() -> None:
    sampler = AnyScan(scans(), Whole(), batch=1)
    before = sampler.mask(sampler.data.volumes[0], Place(-1, (0, 0, 0))).sum()
    sampler.change = Change(matrix=np.eye(3) / 1.1)
    after = sampler.mask(sampler.data.volumes[0], Place(-1, (0, 0, 0))).sum()
    assert after / before == pytest.approx(1.1**3, rel=0.05)


@pytest.mark.parametrize('view', [Slices((0, 1, 2)), Slices((2,), neighbours=1), Patches(16), Whole()])
def test_pairs_stay_pairs(view: View) -> None:
    sampler = Paired(scans(), view, batch=8, target='A')
    sampler.augmentation = Augmentation(angle=20, scale=0.2)
    batch = sampler.draw(np.random.default_rng(0))
    middle = batch['x'].shape[1] // 2
    assert torch.allclose(batch['x'][:, [middle]], 4 * batch['y'], rtol=1e-5)
    assert torch.equal(batch['y'] > 0, batch['mask'] > 0)
    assert batch['mask'].any()


def test_both_of_a_pair_go_through_one_rising_curve() -> None:
    sampler = Paired(scans(), Slices(), batch=4, target='A', flip=False)
    plain = sampler.draw(np.random.default_rng(0))
    for seed in range(5):
        sampler.augmentation = Augmentation(gamma=0.5, gain=0.5)
        sampler.change = sampler.augmentation.drawn(2, np.random.default_rng(seed))
        curve = sampler.change
        found = {name: torch.from_numpy(curve.curved(plain[name].numpy())) for name in 'xy'}
        # y = f(x / 4): f(v) = gain * v ** gamma leaves a constant ratio, and keeps the order of all intensities.
        inside = plain['mask'] > 0
        ratio = found['x'][inside] / found['y'][inside]
        assert torch.allclose(ratio, torch.full_like(ratio, 4**curve.exponent), rtol=1e-4)
        order = plain['x'][inside].argsort()
        assert (found['x'][inside][order].diff() >= 0).all()
        assert 1 / 1.5 <= curve.exponent <= 1.5
        assert 1 / 1.5 <= curve.factor <= 1.5
    batch = sampler.draw(np.random.default_rng(0))
    inside = batch['mask'] > 0
    logs = [torch.log(batch[name][index][inside[index]]) for name in 'xy' for index in range(4)]
    for x, y in zip(logs[:4], logs[4:], strict=True):
        difference = x - y
        assert torch.allclose(difference, difference[0].expand_as(difference), atol=1e-4)
        assert 1 / 1.5 <= float(difference[0]) / np.log(4) <= 1.5
    assert len({round(float((x - y)[0]), 4) for x, y in zip(logs[:4], logs[4:], strict=True)}) == 4


@pytest.mark.parametrize('kind', [Unpaired, Domains])
def test_references_keep_their_contrast(kind: type) -> None:
    """Inputs leave the range of their site; what the look of a site is learnt from does not."""
    sampler = kind(scans(), Slices(), batch=8, target='A')
    sampler.augmentation = Augmentation(gamma=0.5, gain=0.5)
    batch = sampler.draw(np.random.default_rng(0))
    known = set(
        np.unique(np.concatenate([volume.values.ravel() for volume in sampler.data.volumes])).tolist()
    )
    assert set(batch['y'].unique().tolist()) <= known
    assert not set(batch['x'][batch['x_mask'] > 0].unique().tolist()) <= known


def test_all_contrasts_of_a_visit_and_all_sites_of_a_person_are_changed_alike() -> None:
    visits, travellers = (kind(scans(), Slices(), batch=4) for kind in (Visits, Travellers))
    for sampler in (visits, travellers):
        sampler.augmentation = STRONG
    images = visits.draw(np.random.default_rng(0))['images']
    assert torch.equal(images[:, 0], images[:, 1])  # of one site, both contrasts are the same ramp
    batch = travellers.draw(np.random.default_rng(0))
    assert torch.equal(batch['images'][:, 0] > 0, batch['images'][:, 1] > 0)
    assert torch.equal(batch['images'][:, [0]] > 0, batch['mask'] > 0)


@pytest.mark.parametrize('view', [Slices(), Patches(16), Whole()])
def test_the_background_stays_and_does_not_mix_with_the_brain(view: View) -> None:
    mask = ball()
    flat = volume(np.where(mask, 5, -1).astype(np.float32), mask, 'B')
    other = volume(np.where(mask, 7, -1).astype(np.float32), mask, 'A')
    sampler = Unpaired(TrainingSet([flat, other], -1.0), view, batch=6, target='A')
    sampler.augmentation = Augmentation(angle=25, scale=0.2, offset=-1.0)
    batch = sampler.draw(np.random.default_rng(0))
    for name, value in (('x', 5.0), ('y', 7.0)):
        inside = batch[f'{name}_mask'] > 0
        assert torch.allclose(batch[name][inside], torch.tensor(value), atol=1e-4)
        assert (batch[name][~inside] == -1).all()
        assert torch.equal(batch[f'{name}_tissue'][:, None] > 0, inside)


def test_intensities_count_from_the_offset() -> None:
    """For networks that see a brain's median as 0, an intensity of 0 is -1 and stays there."""
    curve = Change(exponent=2.0, factor=0.5, offset=-1.0)
    assert np.allclose(curve.curved(np.array([-1.0, 0.0, 1.0], np.float32)), [-1.0, -0.5, 1.0])


def test_the_same_seed_changes_in_the_same_way() -> None:
    sampler = Unpaired(scans(), Patches(8), batch=2, target='A')
    sampler.augmentation = STRONG
    one, same, other = (sampler.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one['x'], other['x'])
