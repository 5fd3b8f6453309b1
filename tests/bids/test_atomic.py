"""Files are there whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from bidsharm.bids.atomic import copy_file, write_json, write_text
from bidsharm.temporary import atomic_path


class Interrupted(Exception):
    pass


def test_the_file_appears_at_the_end(tmp_path):
    target = tmp_path / 'new' / 'image.nii.gz'
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent, 'a rename across file systems would be a copy'
        assert temporary.name.startswith('.')
        assert temporary.name.endswith('.nii.gz'), 'writers look at the extension'
        temporary.write_text('whole')
        assert not target.exists()
    assert target.read_text() == 'whole'
    assert [path.name for path in target.parent.iterdir()] == ['image.nii.gz']


@pytest.mark.parametrize('error', [Interrupted, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('old', ['old', None])
def test_an_error_leaves_what_was_there(tmp_path, error, old):
    target = tmp_path / 'file.txt'
    if old is not None:
        target.write_text(old)

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text('half')
            raise error

    with pytest.raises(error):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_writer_that_wrote_nothing_under_that_name(tmp_path):
    target = tmp_path / 'file.txt'
    target.write_text('old')

    def write():
        with atomic_path(target) as temporary:
            temporary.unlink()

    with pytest.raises(FileNotFoundError):
        write()
    assert target.read_text() == 'old'


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / 'file.txt', 'text')
        assert os.umask(umask) == umask, 'asking for the umask must not change it'
    finally:
        os.umask(before)
    assert (tmp_path / 'file.txt').stat().st_mode & 0o777 == mode


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / 'file.txt'
    assert write_text(path, 'å\n') is True
    before = path.stat()
    assert write_text(path, 'å\n') is False
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert write_text(path, 'b\n') is True
    assert path.read_text(encoding='utf-8') == 'b\n'


def test_text_replaces_what_is_no_text(tmp_path):
    path = tmp_path / 'file.txt'
    path.write_bytes(b'\xff\xfe')
    assert write_text(path, 'text') is True
    assert path.read_text() == 'text'


def test_json_is_strict(tmp_path):
    path = tmp_path / 'file.json'
    write_json(path, {'a': 'å', 'b': [1.5, None]})
    assert json.loads(path.read_text(encoding='utf-8')) == {'a': 'å', 'b': [1.5, None]}
    with pytest.raises(ValueError):
        write_json(path, {'a': float('nan')})
    assert json.loads(path.read_text(encoding='utf-8'))['a'] == 'å'


def test_copy(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'folder' / 'target'
    source.write_bytes(b'\x00\x01')
    source.chmod(0o400)
    copy_file(source, target)
    assert target.read_bytes() == b'\x00\x01'
    assert target.stat().st_mode & 0o200, 'a read-only input makes no read-only output'
    with pytest.raises(FileNotFoundError):
        copy_file(tmp_path / 'gone', target)
    assert target.read_bytes() == b'\x00\x01'
    assert [path.name for path in target.parent.iterdir()] == ['target']
