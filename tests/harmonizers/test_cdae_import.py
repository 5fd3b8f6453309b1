"""Published weights of CDAE: files of the same layout, made here, for the published ones are not at hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bidsharm.cli.models import main
from bidsharm.errors import UsageError
from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.cdae import CDAE
from bidsharm.harmonizers.cdae_import import FILES, SITES, import_networks, read_weights
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.surface import SurfaceMap
from bidsharm.imaging.icosphere import vertex_count

#: Some names and shapes of the published files, as they were read in them.
PUBLISHED = {
    'encoder': {
        'down.0.block.0.weight.weight': (32, 7), 'down.0.block.4.bias': (32,), 'down.1.block.1.weight.weight': (64, 224),
        'down.3.block.4.weight.weight': (256, 1792), 'down.3.block.5.weight': (256,),
    },
    'decoder': {
        'up.0.0.weight.weight': (128, 1820), 'up.0.1.weight': (128,), 'up.1.up.weight.weight': (448, 128),
        'up.1.double_conv.3.weight.weight': (64, 448), 'up.2.up.weight.weight': (224, 64), 'up.3.0.weight.weight': (224, 32),
        'up.3.1.weight.weight': (32, 224), 'up.3.2.bias': (32,), 'up.3.4.weight.weight': (1, 224),
    },
}  # fmt: skip


def theirs(name: str, key: str) -> str:
    """Return the published name of a layer."""
    if name == 'decoder':
        return key
    _, number, rest = key.split('.', 2)
    return f'down.{number}.block.{rest}'


@pytest.fixture(scope='module')
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files as published ones, with random weights."""
    folder = tmp_path_factory.mktemp('published')
    torch.manual_seed(0)
    method = CDAE()
    method.sites = SITES
    built = method.build()
    for name, file in FILES.items():
        weights = {theirs(name, key): value for key, value in built[name].state_dict().items()}
        assert {key: tuple(weights[key].shape) for key in PUBLISHED[name]} == PUBLISHED[name]
        torch.save(weights, folder / file)
    return folder


def test_a_bundle_is_made_and_harmonizes(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        main(['import-cdae', str(tmp_path / 'model'), '--left', str(published), '--unit', '2.5', '0.4']) == 0
    )
    assert 'bidsharm-surface' in capsys.readouterr().out
    method = bundle.load_any(tmp_path / 'model')
    assert isinstance(method, CDAE)
    assert method.target_site == 'BCP'
    assert set(method.hemispheres) == {'L'}
    values = np.random.default_rng(0).normal(2.5, 0.4, vertex_count(6)).astype(np.float32)
    one = SurfaceMap(values, np.ones(len(values), bool), 'L', site='mine')
    found = method.harmonize(one, Site('BCP'))
    assert np.isfinite(found.values).all()
    assert '"mine"' in found.warnings[0]
    assert main(['check', str(tmp_path / 'model')]) == 0


def test_files_are_those_that_were_given(published: Path) -> None:
    method = import_networks({'R': published}, (2.5, 0.4))
    code = read_weights(published / FILES['encoder'])
    assert torch.equal(
        method.hemispheres['R']['encoder'].state_dict()['down.0.0.weight.weight'], code['down.0.block.0.weight.weight']
    )  # fmt: skip


class Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path('harm'),)


def test_a_file_that_holds_code_is_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in FILES.values():
        torch.save({'a': Harmful()}, tmp_path / file)
    with pytest.raises(UsageError, match='no file of PyTorch weights'):
        import_networks({'L': tmp_path}, (2.5, 0.4))
    (tmp_path / FILES['encoder']).write_bytes(pickle.dumps({'a': Harmful()}))
    with pytest.raises(UsageError, match='no file of PyTorch weights'):
        import_networks({'L': tmp_path}, (2.5, 0.4))
    assert not Path('harm').exists()


def test_other_weights_are_refused(published: Path, tmp_path: Path) -> None:
    for file in FILES.values():
        torch.save({'a': torch.zeros(1)}, tmp_path / file)
    with pytest.raises(UsageError, match='another network'):
        import_networks({'L': tmp_path}, (2.5, 0.4))
    torch.save([1, 2], tmp_path / FILES['encoder'])
    with pytest.raises(UsageError, match='something else'):
        import_networks({'L': tmp_path}, (2.5, 0.4))
    with pytest.raises(UsageError, match='nonscanner_enc'):
        import_networks({'L': tmp_path / 'none'}, (2.5, 0.4))


def test_senseless_requests_are_refused(published: Path) -> None:
    with pytest.raises(UsageError, match='nothing to import'):
        import_networks({}, (2.5, 0.4))
    with pytest.raises(UsageError, match='above 0'):
        import_networks({'L': published}, (2.5, 0.0))
