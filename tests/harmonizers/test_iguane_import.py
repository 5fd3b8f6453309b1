"""Weights of IGUANe in the layout of its published file become a bundle that computes what the Keras graph computes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from bidsharm.cli.models import main
from bidsharm.errors import UsageError
from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.iguane_import import import_generator, read_keras
from bidsharm.nn.blocks import count_parameters

#: Layers of the published generator: channels in and out, edge of the kernel, transposed or not.
LAYERS = [
    *((ins, outs, 3, False) for ins, outs in [(1, 16)]), (16, 16, 4, False), (16, 32, 3, False), (32, 32, 4, False), (32, 64, 3, False),
    (64, 64, 4, False), (64, 128, 3, False), (128, 128, 4, False), (128, 256, 3, False), (256, 128, 4, True), (256, 128, 3, False),
    (128, 64, 4, True), (128, 64, 3, False), (64, 32, 4, True), (64, 32, 3, False), (32, 16, 4, True), (32, 16, 3, False),
]  # fmt: skip


def keras_arrays(rng):
    arrays = []
    for ins, outs, edge, transposed in LAYERS:
        shape = (edge, edge, edge, *((outs, ins) if transposed else (ins, outs)))
        spread = 0.7 / np.sqrt(ins * edge**3)
        arrays.append(
            [
                rng.normal(0, spread, shape),
                rng.normal(0, 0.1, outs),
                rng.normal(1, 0.1, outs),
                rng.normal(0, 0.1, outs),
            ]
        )
    arrays.append([rng.normal(0, 0.1, (1, 1, 1, 17, 1)), rng.normal(0, 0.1, 1)])
    return [[array.astype(np.float32) for array in layer] for layer in arrays]


@pytest.fixture(scope='module')
def weights():
    return keras_arrays(np.random.default_rng(0))


@pytest.fixture
def file(weights, tmp_path):
    """A file as Keras writes it: a group for each layer, and the order in attributes."""
    path = tmp_path / 'iguane_weights.h5'
    with h5py.File(path, 'w') as out:
        names = ['input_1']
        out.create_group('input_1').attrs['weight_names'] = []
        for number, layer in enumerate(weights):
            name = f'sequential_{number}' if number else 'sequential'
            kinds = [
                'conv3d/kernel:0',
                'conv3d/bias:0',
                'instance_normalization/scale:0',
                'instance_normalization/offset:0',
            ]
            group = out.create_group(name)
            group.attrs['weight_names'] = [kind.encode() for kind in kinds[: len(layer)]]
            for kind, array in zip(kinds, layer, strict=False):
                group[kind] = array
            names.append(name)
        out.attrs['layer_names'] = [name.encode() for name in names]
    return path


def reference(layers, x):
    """The published graph, written out with PyTorch's functions: x has shape (1, 1, ...)."""
    functional = torch.nn.functional

    def apply(layer, values, index):
        _, _, edge, transposed = LAYERS[index]
        kernel = torch.from_numpy(layer[0]).permute(4, 3, 0, 1, 2)
        if transposed:
            values = functional.conv_transpose3d(
                values, kernel, torch.from_numpy(layer[1]), stride=2, padding=1
            )
        else:
            stride = 2 if edge == 4 else 1
            values = functional.conv3d(values, kernel, torch.from_numpy(layer[1]), stride=stride, padding=1)
        values = values.relu()
        centred = values - values.mean((2, 3, 4), keepdim=True)
        values = centred / (centred.abs().mean((2, 3, 4), keepdim=True) + 1e-3)
        scale, offset = (torch.from_numpy(part).view(1, -1, 1, 1, 1) for part in layer[2:])
        return values * scale + offset

    here, kept = x, []
    for index in range(8):
        here = apply(layers[index], here, index)
        if index % 2 == 0:
            kept.append(here)
    here = apply(layers[8], here, 8)
    for index in range(9, 17, 2):
        here = apply(layers[index], here, index)
        here = apply(layers[index + 1], torch.cat([here, kept.pop()], dim=1), index + 1)
    last = torch.from_numpy(layers[17][0]).permute(4, 3, 0, 1, 2)
    here = functional.conv3d(torch.cat([here, x], dim=1), last, torch.from_numpy(layers[17][1]))
    return x + here.tanh()


def test_the_generator_has_the_published_number_of_weights(weights):
    assert sum(array.size for layer in weights for array in layer) == 6_532_098
    method = import_generator([array for layer in weights for array in layer])
    assert count_parameters(method.networks['generator']) == 6_532_098


def test_it_computes_what_the_published_graph_computes(weights, file):
    method = import_generator(read_keras(file))
    x = torch.randn(1, 1, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = method.networks['generator'](x)
    assert torch.allclose(found, reference(weights, x), atol=1e-4)


def test_the_command_makes_a_bundle_that_harmonizes(file, make_scan, tmp_path, capsys):
    assert main(['import-iguane', str(file), str(tmp_path / 'model')]) == 0
    assert '--harmonizer iguane' in capsys.readouterr().out
    scan, method = make_scan(shape=(32, 32, 32)), bundle.load(tmp_path / 'model')
    assert method.frame == (160, 192, 160)  # of the published preprocessing
    method.frame = None  # for the time that it would take
    found = method.harmonize(scan, Site('iguane')).image
    # The published preprocessing makes the median 500 and the generator changes it by at most as much.
    assert 0 <= np.median(found[scan.mask]) <= 1000


def test_files_of_other_networks_are_refused(weights, tmp_path, capsys):
    arrays = [array for layer in weights for array in layer]
    with pytest.raises(UsageError, match='holds 69 arrays'):
        import_generator(arrays[:-1])
    with pytest.raises(UsageError, match='Array 0 has shape'):
        import_generator([arrays[4], *arrays[1:]])
    (tmp_path / 'no.h5').write_bytes(b'nothing')
    assert main(['import-iguane', str(tmp_path / 'no.h5'), str(tmp_path / 'model')]) == 2
    assert 'no file of Keras weights' in capsys.readouterr().err


def test_a_file_that_keeps_hdf5_busy_is_given_up(tmp_path, capsys, monkeypatch):
    """One byte of an attribute's description, changed: the library of HDF5 never returns."""
    path = tmp_path / 'busy.h5'
    with h5py.File(path, 'w') as out:
        group = out.create_group('conv')
        group['kernel'] = np.zeros((3, 3), np.float32)
        group.attrs['weight_names'] = [b'kernel']
        out.attrs['layer_names'] = [b'conv']
    content = bytearray(path.read_bytes())
    content[2636] = 0
    path.write_bytes(content)
    monkeypatch.setattr('bidsharm.cli.models.IMPORT_LIMIT_S', 6)
    assert main(['import-iguane', str(path), str(tmp_path / 'model')]) != 0
    assert 'busy.h5' in capsys.readouterr().err
    assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize('kind', ['link', 'outside', 'huge'])
def test_nothing_is_read_from_other_files(tmp_path, kind):
    (tmp_path / 'secret').write_bytes(b'secret' * 100)
    with h5py.File(tmp_path / 'other.h5', 'w') as out:
        out['kernel'] = np.ones((3, 3), np.float32)
    with h5py.File(tmp_path / 'x.h5', 'w') as out:
        group = out.create_group('conv')
        if kind == 'link':
            group['kernel'] = h5py.ExternalLink(str(tmp_path / 'other.h5'), '/kernel')
        elif kind == 'outside':
            group.create_dataset('kernel', (3, 3), 'f4', external=[(str(tmp_path / 'secret'), 0, 36)])
        else:
            group.create_dataset('kernel', (10**6, 10**6), 'f4', chunks=(64, 64))
        group.attrs['weight_names'] = [b'kernel']
        out.attrs['layer_names'] = [b'conv']
    with pytest.raises(UsageError, match=r'link|other file|larger'):
        read_keras(tmp_path / 'x.h5')
