from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bidsharm.cli.models import main
from bidsharm.errors import ExitCode
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.linear import Robust


def test_the_list_is_readable_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any('…' in line for line in lines)
    firsts = [line.split()[0] for line in lines if line and not line.startswith(' ')]
    assert set(registry._BUILTIN) <= set(firsts)
    row = next(line for line in lines if line.startswith('nyul')).split()
    assert {'canonical', 'cohort', 'faithful', 'no'} <= set(row)
    assert 'tissues' in next(line for line in lines if line.startswith('fcm')).split()


def test_the_list_as_json(capsys):
    assert main(['list', '--json']) == 0
    content = json.loads(capsys.readouterr().out)
    cards = {card['name']: card for card in content['harmonizers']}
    assert cards['lsq']['needs_fit'] == ['cohort']
    needing = {name for name, card in cards.items() if card['needs_apply'] == ['tissue']}
    assert needing & set(registry._BUILTIN) == {'fcm', 'lsq'}
    assert content['broken'] == {}


def test_a_broken_package_is_named_below_the_list(capsys, monkeypatch):
    from importlib.metadata import EntryPoint

    points = {'robust': registry.available()['robust']}
    points['gone'] = EntryPoint('gone', 'package_that_is_not_there:Thing', registry.GROUP)
    monkeypatch.setattr(registry, 'available', lambda: points)
    assert main(['list']) == 0
    out = capsys.readouterr().out
    assert 'robust' in out
    assert 'Left out' in out
    assert '"gone"' in out


def test_one_card_with_its_paper(capsys):
    assert main(['show', 'whitestripe']) == 0
    out = capsys.readouterr().out
    assert 'Shinohara' in out
    assert '10.1016/j.nicl.2014.08.008' in out
    assert main(['show', 'whitestripe', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['name'] == 'whitestripe'


def test_an_unknown_name_is_a_usage_error(capsys):
    assert main(['show', 'whitestrip']) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.startswith('bidsharm-models: There is no harmonizer "whitestrip".')
    assert 'whitestripe' in said


def test_check_tells_whole_from_damaged(capsys, cohort, tmp_path):
    harmonizer = Robust()
    harmonizer.fit(cohort, target=Site('B'))
    digest = bundle.save(harmonizer, tmp_path / 'model')
    assert main(['check', str(tmp_path / 'model')]) == 0
    out = capsys.readouterr().out
    assert digest in out
    assert 'robust' in out
    assert 'B' in out.split('target')[1].splitlines()[0]
    (tmp_path / 'model' / 'model.safetensors').write_bytes(b'')
    assert main(['check', str(tmp_path / 'model')]) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert 'damaged' in said
    assert said.startswith(f'bidsharm-models: {tmp_path / "model"}: ')


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


def test_nothing_heavy_is_imported_at_start():
    code = 'import sys, bidsharm.cli.models as m; m.build_parser(); '
    code += (
        "heavy = {'numpy', 'rich', 'torch', 'scipy', 'nibabel', 'importlib.metadata'} & set(sys.modules); "
    )
    code += 'sys.exit(str(heavy) if heavy else 0)'
    assert subprocess.run([sys.executable, '-c', code], env={**os.environ}, check=False).returncode == 0


def test_methods_for_tables_are_shown_and_checked(capsys, tmp_path):
    import numpy as np

    from bidsharm.harmonizers.combat import ComBat
    from bidsharm.harmonizers.table import FeatureTable

    assert main(['show', 'combat']) == 0
    out = capsys.readouterr().out
    assert 'table -> features' in out
    assert 'prior=parametric' in out
    assert '1 mm head' not in out
    method = ComBat()
    method.fit(FeatureTable(np.random.default_rng(0).normal(size=(20, 3)), ('a', 'b', 'c'), ('X', 'Y') * 10))
    bundle.save(method, tmp_path / 'model')
    assert main(['check', str(tmp_path / 'model')]) == 0
    assert 'combat' in capsys.readouterr().out
