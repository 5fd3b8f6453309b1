"""What counts as done, and what has to be done again."""

from __future__ import annotations

import json
import os

import pytest

from bidsharm.bids.resume import fingerprint, is_complete, read_record, retire, unchanged


@pytest.fixture
def done(tmp_path):
    """A scan whose outputs are all there."""
    raw, root = tmp_path / 'raw.nii.gz', tmp_path / 'out'
    raw.write_bytes(b'voxels')
    root.mkdir()
    for name in ('image.nii.gz', 'mask.nii.gz', 'figure.png'):
        (root / name).write_text(name)
    record = {
        'scan': 'sub-01_T1w', 'subject': '01', 'contrast': 'T1w', 'verdict': 'pass', 'digest': 'd1', 'outputs': {name: fingerprint(root / name) for name in ('image.nii.gz', 'mask.nii.gz')}, 'figures': {'edges': 'figure.png'},
        'inputs': {'bids:raw:x': fingerprint(raw)},
    }  # fmt: skip
    (root / 'qc.json').write_text(json.dumps(record))
    return raw, root, record


def complete(raw, root, digest='d1'):
    return is_complete(root / 'qc.json', root, {'bids:raw:x': raw}, digest)


def test_a_finished_scan_is_done(done):
    raw, root, _ = done
    assert complete(raw, root)


@pytest.mark.parametrize('name', ['image.nii.gz', 'mask.nii.gz', 'figure.png', 'qc.json'])
def test_a_missing_output(done, name):
    raw, root, _ = done
    (root / name).unlink()
    assert not complete(raw, root)


def test_a_scan_whose_site_was_corrected(done):
    raw, root, record = done
    (root / 'qc.json').write_text(json.dumps({**record, 'site': 'north'}))
    for site, same in (('north', True), ('south', False), (None, True)):
        assert is_complete(root / 'qc.json', root, {'bids:raw:x': raw}, 'd1', site=site) is same


def test_images_of_other_settings_go_with_their_record(done, tmp_path):
    raw, root, record = done
    (root / 'image.json').write_text('{}')
    (root / 'other.nii.gz').write_text('of another scan')
    (tmp_path / 'outside.nii.gz').write_text('kept')
    strange = {'x' * 3000: {}, 'a\0b': {}, '': {}, 'gone.nii.gz': {}}
    outputs = {**record['outputs'], '../outside.nii.gz': {}, str(raw): {}, **strange}
    (root / 'qc.json').write_text(json.dumps({**record, 'outputs': outputs}))
    retire(root / 'qc.json', root, 'd2')
    assert {path.name for path in root.iterdir()} == {'figure.png', 'other.nii.gz'}
    assert raw.exists()
    assert (tmp_path / 'outside.nii.gz').exists()


def test_images_of_the_same_settings_stay(done):
    _, root, record = done
    retire(root / 'qc.json', root, 'd1')
    assert not (root / 'qc.json').exists()
    assert all((root / name).exists() for name in record['outputs'])
    (root / 'qc.json').write_text('{"cut')
    retire(root / 'qc.json', root, 'd2')
    retire(root / 'qc.json', root, 'd2')
    assert all((root / name).exists() for name in record['outputs'])


def test_an_output_that_is_no_file(done):
    raw, root, _ = done
    (root / 'image.nii.gz').unlink()
    (root / 'image.nii.gz').mkdir()
    assert not complete(raw, root)


def test_an_output_of_another_job(done):
    """Two jobs with different settings in one folder: the record of one, the images of the other."""
    raw, root, _ = done
    image = root / 'image.nii.gz'
    os.utime(image, ns=(1, 1))
    assert complete(raw, root)  # copied or moved
    image.write_text('image.nii.GZ')
    assert not complete(raw, root)


def test_other_settings(done):
    raw, root, _ = done
    assert not complete(raw, root, 'd2')


def test_another_input(done):
    raw, root, _ = done
    raw.write_bytes(b'VOXELS')  # as long as before
    os.utime(raw, ns=(1, 1))
    assert not complete(raw, root)


def test_a_longer_input_of_the_same_time(done):
    raw, root, record = done
    stamp = record['inputs']['bids:raw:x']['mtime_ns']
    raw.write_bytes(b'more voxels')
    os.utime(raw, ns=(stamp, stamp))
    assert not complete(raw, root)


def test_another_set_of_inputs(done, tmp_path):
    """A T1w that came later, or a mask that is no longer given, makes another result."""
    raw, root, _ = done
    assert not is_complete(root / 'qc.json', root, {'bids:raw:x': raw, 'bids:raw:y': raw}, 'd1')
    assert not is_complete(root / 'qc.json', root, {}, 'd1')


def test_a_copied_input_is_the_same(done):
    """Data sets are moved and cloned: only the time changes."""
    raw, root, _ = done
    os.utime(raw, ns=(1, 1))
    assert complete(raw, root)


def test_a_lost_input(done):
    raw, root, _ = done
    raw.unlink()
    assert not complete(raw, root)


@pytest.mark.parametrize(
    'change',
    [
        {'outputs': None}, {'outputs': 3}, {'outputs': ['image.nii.gz']}, {'outputs': {'image.nii.gz': None}}, {'outputs': {'image.nii.gz': {}}}, {'figures': None}, {'figures': ['figure.png']},
        {'figures': {'x': None}}, {'inputs': None}, {'inputs': {}}, {'inputs': 'x'}, {'inputs': {'bids:raw:x': None}}, {'digest': None},
    ],
)  # fmt: skip
def test_an_edited_record_proves_nothing(done, change):
    raw, root, record = done
    (root / 'qc.json').write_text(json.dumps({**record, **change}))
    assert not complete(raw, root)


@pytest.mark.parametrize('key', ['outputs', 'figures', 'inputs', 'digest', 'verdict', 'scan', 'subject'])
def test_an_incomplete_record_proves_nothing(done, key):
    raw, root, record = done
    (root / 'qc.json').write_text(json.dumps({k: v for k, v in record.items() if k != key}))
    assert not complete(raw, root)


@pytest.mark.parametrize(
    'content', [b'', b'{"verdict": "pass"', b'[]', b'"verdict"', b'\xff', b'{}', b'[' * 100_000]
)
def test_a_broken_record_is_none(tmp_path, content):
    path = tmp_path / 'qc.json'
    path.write_bytes(content)
    assert read_record(path) is None
    assert read_record(tmp_path / 'gone.json') is None


def test_fingerprint_is_of_the_content(tmp_path):
    first, second = tmp_path / 'a', tmp_path / 'b'
    first.write_bytes(b'abc')
    second.write_bytes(b'abd')
    # SHA-256 of "abc" (FIPS 180-2, appendix B.1)
    assert fingerprint(first)['sha256'] == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert fingerprint(first)['size'] == 3
    assert unchanged(first, fingerprint(first))
    assert not unchanged(second, fingerprint(first) | {'mtime_ns': 0})
