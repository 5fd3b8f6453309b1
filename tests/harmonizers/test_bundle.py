from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from bidsharm.errors import ConfigurationError
from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.contract import Canonical, Execution, Site
from bidsharm.harmonizers.histogram import Nyul
from bidsharm.harmonizers.linear import Robust


@pytest.fixture
def saved(cohort, tmp_path):
    harmonizer = Nyul()
    harmonizer.fit(cohort)
    folder = tmp_path / 'models' / 'nyul'
    bundle.save(harmonizer, folder)
    return folder


def edit_card(folder, **changes):
    path = folder / 'card.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written(saved):
    assert sorted(os.listdir(saved)) == ['card.json', 'model.safetensors']
    assert os.listdir(saved.parent) == ['nyul']  # nothing temporary is left
    card = json.loads((saved / 'card.json').read_text())
    assert card['name'] == 'nyul'
    assert card['contrasts'] == ['T1w']
    assert card['settings']['target'] == 'canonical'
    assert card['card']['doi'] == '10.1109/42.836373'


def test_the_digest_says_whether_the_content_is_equal(saved, cohort, tmp_path):
    again, other = Nyul(), Nyul()
    again.fit(cohort)
    other.fit(cohort, target=Site('B'))
    assert bundle.save(again, tmp_path / 'again') == bundle.digest(saved)
    assert bundle.save(other, tmp_path / 'other') != bundle.digest(saved)


def test_the_target_and_the_execution_come_back(cohort, tmp_path, make_scan):
    harmonizer = Robust()
    harmonizer.fit(cohort, target=Site('B'))
    bundle.save(harmonizer, tmp_path / 'm')
    execution = Execution(threads=3)
    loaded = bundle.load(tmp_path / 'm', execution, name='robust')
    assert loaded.execution is execution
    scan = make_scan(seed=50)
    assert np.array_equal(
        loaded.harmonize(scan, Site('B')).image, harmonizer.harmonize(scan, Site('B')).image
    )


def test_a_whole_bundle_is_kept(saved, cohort):
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in saved.iterdir()}
    digest = bundle.digest(saved)
    late = Nyul()
    late.fit(cohort, target=Site('A'))
    assert bundle.save(late, saved) == digest
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in saved.iterdir()} == before
    assert os.listdir(saved.parent) == ['nyul']


def test_remains_of_a_bundle_are_replaced(saved, cohort):
    digest = bundle.digest(saved)
    (saved / 'model.safetensors').write_bytes(b'half')
    harmonizer = Nyul()
    harmonizer.fit(cohort)
    assert bundle.save(harmonizer, saved) == digest
    assert os.listdir(saved.parent) == ['nyul']


def test_other_peoples_files_are_never_replaced(tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.txt').write_text('all of it')
    (tmp_path / 'file').write_text('a file')
    for place in ('thesis', 'file'):
        with pytest.raises(ConfigurationError, match='something else'):
            bundle.save(Robust(), tmp_path / place)
    assert (tmp_path / 'thesis' / 'chapter.txt').read_text() == 'all of it'
    assert (tmp_path / 'file').read_text() == 'a file'
    assert sorted(os.listdir(tmp_path)) == ['file', 'thesis']


def test_a_bundle_of_another_method_is_not_replaced(saved):
    with pytest.raises(ConfigurationError, match='"nyul"'):
        bundle.save(Robust(), saved)
    assert type(bundle.load(saved)) is Nyul


def test_the_wrong_method_is_refused(saved):
    with pytest.raises(ConfigurationError, match='made by "nyul", not by "kde"'):
        bundle.load(saved, name='kde')
    edit_card(saved, name='no-such-method')
    with pytest.raises(ConfigurationError, match='"no-such-method", which is not installed'):
        bundle.load(saved)


def test_one_flipped_bit_is_found(saved):
    path = saved / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    for read in (bundle.load, bundle.digest, bundle.read_card):
        with pytest.raises(ConfigurationError, match='damaged'):
            read(saved)


@pytest.mark.parametrize('name', ['card.json', 'model.safetensors'])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ConfigurationError, match=r'card\.json or model\.safetensors') as caught:
        bundle.load(saved)
    assert caught.value.where == str(saved)


@pytest.mark.parametrize('text', ['', '{"format": 1', '[]', '{}', '{"format": 1}', b'\xff\xfe\x00'])
def test_a_card_that_is_no_card_is_refused(saved, text):
    (saved / 'card.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError, match='damaged'):
        bundle.load(saved)


@pytest.mark.parametrize('version', [0, 2, '1', None])
def test_another_format_is_refused(saved, version):
    edit_card(saved, format=version)
    with pytest.raises(ConfigurationError, match='reads 1'):
        bundle.load(saved)


def test_wrong_shapes_and_names_are_refused(saved):
    import hashlib

    from safetensors.numpy import load, save

    path = saved / 'model.safetensors'
    good = load(path.read_bytes())
    spoiled = [
        {**good, 'T1w/standard': good['T1w/standard'][:-1]},
        {**good, 'T1w/standard': np.full(11, np.nan)},
        {**good, 'T2w/standard': good['T1w/standard']},
        {'T1w/standard': good['T1w/standard']},
        {**good, 'T1w/standard': good['T1w/standard'].astype(np.float32)},
    ]
    for arrays in spoiled:
        path.write_bytes(save(arrays))
        edit_card(saved, tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(ConfigurationError, match='nyul'):
            bundle.load(saved)
    path.write_bytes(b'not tensors at all')
    edit_card(saved, tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ConfigurationError, match='cannot be read'):
        bundle.load(saved)


def test_settings_of_the_wrong_kind_are_refused(saved):
    edit_card(saved, settings={'contrasts': 7})
    with pytest.raises(ConfigurationError, match='damaged'):
        bundle.load(saved)


def test_an_unfitted_method_can_be_saved(tmp_path, make_scan):
    bundle.save(Robust(), tmp_path / 'm')
    scan = make_scan()
    loaded = bundle.load(tmp_path / 'm')
    assert np.array_equal(
        loaded.harmonize(scan, Canonical()).image, Robust().harmonize(scan, Canonical()).image
    )


def test_torch_is_not_imported(saved):
    import subprocess

    code = f'import sys; from bidsharm.harmonizers import bundle; bundle.load({str(saved)!r}); '
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, '-c', code], env={**os.environ}, check=False).returncode == 0
