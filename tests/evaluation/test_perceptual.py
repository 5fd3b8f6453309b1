from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.evaluation import features as F
from bidsharm.evaluation import perceptual as P


class Watched(dict):
    """Weights that note which of them are used."""

    def __getitem__(self, name):
        self.__dict__.setdefault('used', set()).add(name)
        return super().__getitem__(name)


def test_inception_uses_each_of_its_weights(inception):
    watched = Watched(inception)
    with torch.no_grad():
        found = P._Inception(watched)(torch.zeros(1, 3, 107, 107))
    assert found.shape == (1, 2048)
    assert watched.used == set(inception) - {'fc.weight', 'fc.bias'}
    # The published network without its classes.
    assert sum(part.numel() for name, part in inception.items() if 'conv' in name) == 21_751_136


def test_averages_pass_over_the_padding(inception):
    net, ones = P._Inception(inception), torch.ones(1, 1, 5, 5)
    assert (net._average(ones) == 1).all()
    assert P._Inception(inception, count_padding=True)._average(ones)[0, 0, 0, 0] == pytest.approx(4 / 9)


def test_inception_is_that_of_torchvision_but_for_its_pooling():
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError) as error:
        pytest.skip(f'torchvision is not there or does not fit torch: {error}')
    torch.manual_seed(1)
    net = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    weights, net.fc = net.state_dict(), nn.Identity()
    images = torch.rand(1, 3, 299, 299)
    with torch.no_grad():
        expected = net(images)
        found = P._Inception(weights, count_padding=True, last_maximum=False)(images)
    torch.testing.assert_close(found, expected)


def test_fid_and_kid_are_distances_of_the_features(inception, tmp_path):
    save_file(inception, tmp_path / 'inception.safetensors')
    weights = P.load_weights(tmp_path / 'inception.safetensors')
    rng = np.random.default_rng(0)
    images, target = rng.uniform(size=(2, 40, 50)), 0.5 * rng.uniform(size=(2, 30, 30))
    found = P.inception_distances(images, target, weights)
    first, logits = P.inception_features(images, weights, batch=1)
    second, _ = P.inception_features(target, weights)
    assert first.shape == (2, 2048)
    np.testing.assert_allclose(logits, first @ inception['fc.weight'].numpy().T, rtol=1e-3, atol=1e-3)
    assert found.fid == pytest.approx(F.frechet_distance(first, second), rel=1e-3)
    assert found.kid == pytest.approx(F.kernel_distance(first, second), rel=1e-3)
    assert found.fid > 0
    assert found.inception_score == pytest.approx(P.inception_score(logits), rel=1e-3)


def test_inception_score_by_hand():
    sure = np.log(np.eye(4) + 1e-300)
    assert P.inception_score(sure) == pytest.approx(4)
    assert P.inception_score(np.tile(sure[0], (3, 1))) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    mean = p.mean(axis=0)
    assert P.inception_score(np.log(p) + 5) == pytest.approx(
        np.exp(np.mean(np.sum(p * np.log(p / mean), axis=1)))
    )
    assert np.isnan(P.inception_score(np.empty((0, 4))))


def alexnet() -> nn.Sequential:
    """Return the convolutions of AlexNet as its paper for several devices has them (Krizhevsky 2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16() -> nn.Sequential:
    """Return the convolutions of configuration D of Simonyan and Zisserman 2014."""
    layers: list[nn.Module] = []
    depth = 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in block:
            layers += [nn.Conv2d(depth, width, 3, padding=1), nn.ReLU()]
            depth = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(('make', 'ends'), [(alexnet, (1, 4, 7, 9, 11)), (vgg16, (3, 8, 15, 22, 29))])
def test_lpips_by_layers(make, ends):
    torch.manual_seed(0)
    net = make()
    depths = [net[end - 1].out_channels for end in ends]
    weights = {f'features.{name}': part for name, part in net.state_dict().items()}
    weights |= {
        f'lin{index}.model.1.weight': torch.rand(1, depth, 1, 1) for index, depth in enumerate(depths)
    }
    rng = np.random.default_rng(0)
    images, references = rng.uniform(-0.2, 1.2, (2, 2, 64, 72))
    expected = np.zeros(2)
    x, y = (
        torch.from_numpy(np.clip(part, 0, 1).astype(np.float32))[:, None].repeat(1, 3, 1, 1)
        for part in (images, references)
    )
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    x, y = ((2 * part - 1 - shift) / scale for part in (x, y))
    with torch.no_grad():
        for index, layer in enumerate(net):
            x, y = layer(x), layer(y)
            if index in ends:
                linear = weights[f'lin{ends.index(index)}.model.1.weight']
                gap = nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)
                expected += nn.functional.conv2d(gap**2, linear).mean(dim=(1, 2, 3)).numpy()
    assert P.lpips(images, references, weights) == pytest.approx(expected, rel=1e-4)
    assert P.lpips(images, images, weights) == pytest.approx([0, 0])
    del weights['lin3.model.1.weight']
    with pytest.raises(UsageError, match='lin3'):
        P.lpips(images, references, weights)


def test_weights_are_no_pickles(tmp_path):
    torch.save({}, tmp_path / 'weights.pth')
    with pytest.raises(UsageError, match='safetensors files only'):
        P.load_weights(tmp_path / 'weights.pth')
    with pytest.raises(ConfigurationError, match='no such'):
        P.load_weights(tmp_path / 'weights.safetensors')
    (tmp_path / 'weights.safetensors').write_bytes(b'no weights at all')
    with pytest.raises(UsageError, match='no safetensors file'):
        P.load_weights(tmp_path / 'weights.safetensors')


def test_other_networks_and_images_are_refused(inception):
    with pytest.raises(UsageError, match='1008 classes, and these weights have 1000'):
        P.inception_features(np.zeros((2, 9, 9)), {'fc.weight': torch.zeros(1000, 2048)})
    with pytest.raises(UsageError, match=r'no .Mixed_6d\.branch1x1\.conv\.weight'):
        P.inception_features(
            np.zeros((1, 9, 9)), {name: part for name, part in inception.items() if '6d' not in name}
        )
    with pytest.raises(UsageError, match='no finite slices'):
        P.inception_features(np.full((2, 9, 9), np.nan), inception)
    with pytest.raises(UsageError, match='32 x 32'):
        P.lpips(np.zeros((1, 31, 40)), np.zeros((1, 31, 40)), {})
    few = P.inception_distances(np.zeros((1, 9, 9)), np.zeros((2, 9, 9)), inception)
    assert np.isnan(few.fid)
    assert few.reason
