"""The network of isotone: what holds whatever its weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsharm.imaging.lowres import LowResolution
from bidsharm.nn import isotone as parts
from bidsharm.nn.isotone_model import KNOTS, Aim, Model, Reader, field_at, increasing
from bidsharm.nn.isotone_unet import CanonicalUNet


def wild_net(seed: int = 0) -> parts.IsotoneNet:
    """Return a small network with weights large enough that every head says something."""
    torch.manual_seed(seed)
    net = parts.IsotoneNet(width=16, depth=(1, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def model(seed: int = 0, *, drawing: bool = False) -> Model:
    net = wild_net(seed)
    reader = Reader(net, CanonicalUNet() if drawing else None)
    return Model(reader, parts.Judge(reader.features))


def brain(seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> LowResolution:
    """Return a ball of three tissues with noise."""
    shape = (32, 32, 32)
    away = np.sqrt(((np.indices(shape) - 15.5) ** 2).sum(axis=0))
    data = np.select([away < 8, away < 12], [1.0, 0.6], 0.2)
    data = data + 0.03 * np.random.default_rng(seed).standard_normal(shape)
    inside = away < 14
    return LowResolution(
        (scale * data[inside] + offset).astype(np.float32),
        np.argwhere(inside),
        shape,
        np.diag([2.0, 2, 2, 1]),
    )


def test_soft_histogram():
    step = (parts.LAST - parts.FIRST) / (parts.BINS - 1)
    values = torch.tensor([parts.FIRST, parts.FIRST + 0.25 * step, parts.LAST + 9, parts.FIRST - 9])
    table = parts.soft_histogram(values, torch.tensor([0, 1, 1, 3]), 5)
    expected = torch.zeros(parts.BINS, 5)
    expected[0, 0] = 1
    expected[0, 1], expected[1, 1], expected[-1, 1] = 0.375, 0.125, 0.5
    expected[0, 3] = 1
    torch.testing.assert_close(table, expected)


def test_cells_know_their_share_and_place():
    voxels = torch.tensor([[0, 0, 0], [1, 1, 1], [15, 15, 15]])
    channels = parts.cell_channels(torch.tensor([0.1, 0.2, 0.3]), voxels, (16, 16, 16), 4)
    assert channels.shape == (parts.CHANNELS, 4, 4, 4)
    share = channels[parts.BINS]
    assert share[0, 0, 0] == pytest.approx(2 / 64)
    assert share[3, 3, 3] == pytest.approx(1 / 64)
    assert share.sum() == pytest.approx(3 / 64)
    place = channels[parts.BINS + 1 :]
    assert (place[:, share == 0] == 0).all()
    assert place[0, 3, 3, 3] > place[0, 0, 0, 0]


def test_global_histograms_part_by_tissue():
    values = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    tissue = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]])
    whole, csf, gm, wm = parts.global_histograms(values, tissue).reshape(parts.HISTOGRAMS, -1)[:4]
    assert whole.sum() == pytest.approx(10, rel=1e-5)
    assert int(csf.argmax()) < int(gm.argmax())
    torch.testing.assert_close(whole, (csf + gm) / 2)
    assert wm.sum() == 0


def test_sampling_a_field():
    field = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 3, 5)
    middle = torch.tensor([[[-0.75, 0, 0], [-0.25, 0.3, -0.2], [0, 0, 0], [0.75, 0.9, 0.9]]])
    torch.testing.assert_close(parts.sample_field(field, middle), torch.tensor([[[0.0, 1.0, 1.5, 3.0]]]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_curves_increase_whatever_the_weights_are(seed):
    net = wild_net(seed)
    generator = torch.Generator().manual_seed(seed)
    embedding = 5 * torch.randn(3, net.zero.in_features, generator=generator)
    histogram = 5 * torch.rand(3, parts.HISTOGRAMS * parts.GLOBAL_BINS, generator=generator)
    start, slopes = net.slopes(embedding, histogram)
    assert (slopes >= 1 / parts.STEEPEST - 1e-6).all()
    assert (slopes <= parts.STEEPEST + 1e-6).all()
    values = torch.linspace(-1, 3, 500).expand(3, 500)
    mapped = parts.apply_curve(values, start, slopes)
    assert (mapped.diff(dim=1) > 0).all()


def test_the_curve_of_torch_and_of_numpy_are_one():
    net = wild_net(3)
    start, slopes = net.slopes(
        torch.randn(1, net.zero.in_features), torch.rand(1, parts.HISTOGRAMS * parts.GLOBAL_BINS)
    )
    values = torch.linspace(-0.5, 2.5, 301)[None]
    heights = np.concatenate([[0], np.cumsum(slopes.detach().numpy()[0] * KNOTS[1])]) + float(start.detach())
    expected = increasing(values.numpy()[0].astype(float), KNOTS, heights)
    np.testing.assert_allclose(
        parts.apply_curve(values, start, slopes).detach().numpy()[0], expected, atol=1e-4
    )


def test_increasing_inverts():
    rng = np.random.default_rng(0)
    heights = np.cumsum(rng.uniform(0.05, 0.5, KNOTS.size)) - 0.3
    x = np.linspace(-0.4, 2.4, 200)
    np.testing.assert_allclose(increasing(increasing(x, KNOTS, heights), heights, KNOTS), x, atol=1e-9)


@pytest.mark.parametrize('drawing', [False, True])
def test_the_gain_is_smooth_bounded_and_centred(drawing):
    seen = brain()
    style = model(1, drawing=drawing).understand(seen)
    field = style.log_gain
    assert np.abs(field).max() > 0.01  # it does say something
    mask = np.zeros(seen.shape, dtype=bool)
    mask[tuple(seen.voxels.T)] = True
    values = field_at(field, seen, mask, seen.affine)
    assert abs(values.mean()) < 0.1
    assert np.abs(values).max() < 2 * parts.LARGEST_GAIN


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1e5), st.floats(-5, 5))
def test_scale_and_offset_do_not_matter(scale, shift):
    net = model(2)
    plain, changed = brain(), brain(scale=scale, offset=scale * shift)
    first, second = net.understand(plain), net.understand(changed)
    np.testing.assert_allclose(second.log_gain, first.log_gain, atol=2e-3)
    np.testing.assert_allclose(second.heights, first.heights, atol=5e-3)
    assert second.scale / scale == pytest.approx(first.scale, rel=5e-3)
    assert (second.offset / scale - shift) == pytest.approx(first.offset, abs=5e-3)


def test_left_and_right_are_alike():
    net, seen = model(4), brain()
    mirrored = LowResolution(
        seen.values, np.stack([31 - seen.voxels[:, 0], seen.voxels[:, 1], seen.voxels[:, 2]], axis=1), seen.shape, seen.affine
    )  # fmt: skip
    first, second = net.understand(seen), net.understand(mirrored)
    np.testing.assert_allclose(second.log_gain[::-1], first.log_gain, atol=1e-4)
    np.testing.assert_allclose(second.heights, first.heights, atol=1e-4)


def default_model(*, drawing: bool = False, aim: Aim | None = None) -> Model:
    torch.manual_seed(0)
    reader = Reader(parts.IsotoneNet(), CanonicalUNet() if drawing else None, aim)
    return Model(reader, parts.Judge(reader.features))


@pytest.mark.parametrize('share', [1.0, Aim().drawn])
def test_the_gain_and_the_curve_are_fitted_to_drawing_and_network(share):
    seen, flat = brain(), default_model(drawing=True, aim=Aim(share))
    for layer in flat.reader.unet.last[-1].parameters():
        torch.nn.init.zeros_(layer)  # draws what it sees, in units of the scan
    read = flat.reader.read(seen)
    mask = np.zeros(seen.shape, dtype=bool)
    mask[tuple(seen.voxels.T)] = True
    found = read.found.canonical(seen.values, field_at(read.found.log_gain, seen, mask, seen.affine))
    low, span = parts.scan_units(torch.from_numpy(seen.values))
    drawn = (seen.values - float(low)) / float(span)
    alone = default_model().reader.read(seen)
    before = alone.found.canonical(seen.values, field_at(alone.found.log_gain, seen, mask, seen.affine))
    assert np.abs(drawn - before).mean() > 0.08
    np.testing.assert_allclose(found, share * drawn + (1 - share) * before, atol=0.1)
    assert read.features.shape[1] == alone.features.shape[1] + 2
    distances = [np.abs(found - other).mean() for other in (drawn, before)]
    np.testing.assert_allclose(read.features[0, -2:].exp(), distances, rtol=0.02)
    assert distances[0] < (0.05 if share == 1 else distances[1])


def test_the_aim_leaves_bright_voxels_to_the_network():
    seen = torch.linspace(0, 1, 1001)
    drawing = 0.5 * seen + 1
    torch.testing.assert_close(Aim(0.6).of(drawing, seen), 0.6 * drawing + 0.4 * seen)
    spared = Aim(0.8, (0.7, 0.9)).of(drawing, seen)
    torch.testing.assert_close(spared[:700], (0.8 * drawing + 0.2 * seen)[:700])
    torch.testing.assert_close(spared[900:], seen[900:])
    torch.testing.assert_close(spared[800], 0.4 * drawing[800] + 0.6 * seen[800])


@pytest.mark.parametrize('wrong', [[0.6], [0.6, 0.9, 0.7], [1.2, 1, 1], [0.6, -0.1, 1], [float('nan'), 1, 1]])
def test_an_aim_is_a_share_and_two_quantiles(wrong):
    with pytest.raises(RuntimeError, match='two increasing quantiles'):
        Aim.from_array(np.array(wrong))


@pytest.mark.parametrize('drawing', [False, True])
def test_a_model_survives_its_arrays(drawing):
    aim = Aim(0.75, (0.5, 0.875))
    first = Model.from_arrays(
        default_model(drawing=drawing, aim=aim).arrays()
    )  # half precision is what is kept
    again = Model.from_arrays(first.arrays())
    assert again.reader.aim == (aim if drawing else Aim())
    one, two = first.understand(brain()), again.understand(brain())
    np.testing.assert_array_equal(one.log_gain, two.log_gain)
    np.testing.assert_array_equal(one.heights, two.heights)
    assert one.strangeness == two.strangeness
    assert 0 < one.strangeness < 1
    assert one.expected_error > 0


@pytest.mark.parametrize('name', ['judge/layers.1.weight', 'net/gain.bias', 'unet/spread.weight'])
def test_missing_or_misshapen_arrays_are_an_error(name):
    arrays = default_model(drawing=name.startswith('unet/')).arrays()
    whole = arrays.pop(name)
    with pytest.raises(RuntimeError, match='Missing'):
        Model.from_arrays(arrays)
    with pytest.raises(RuntimeError, match='size mismatch'):
        Model.from_arrays({**arrays, name: whole[..., :-1] if whole.ndim > 1 else np.zeros(7)})
