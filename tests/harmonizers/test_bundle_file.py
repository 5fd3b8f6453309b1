"""Bundles as one file: the same bytes from the same bundle, and nothing but one whole bundle out of a file from elsewhere."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest

from bidsharm.cli.models import main
from bidsharm.errors import ConfigurationError, ExitCode, UsageError
from bidsharm.harmonizers import bundle, bundle_file
from bidsharm.harmonizers.bundle_file import export_bundle, import_bundle
from bidsharm.harmonizers.contract import Canonical, Reference, Site
from bidsharm.harmonizers.histogram import Nyul
from bidsharm.harmonizers.linear import Robust


@pytest.fixture
def saved(cohort, tmp_path):
    harmonizer = Nyul()
    harmonizer.fit(cohort)
    bundle.save(harmonizer, tmp_path / 'model')
    return tmp_path / 'model'


def archive(path, entries):
    """Write a tar file of (name, content, changes of the header)."""
    with tarfile.open(path, 'w') as out:
        for name, content, changes in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in changes.items():
                setattr(entry, key, value)
            out.addfile(entry, io.BytesIO(content))
    return path


def parts(folder):
    return [(name, (folder / name).read_bytes(), {}) for name in ('card.json', 'model.safetensors')]


def test_a_bundle_goes_through_a_file_unchanged(saved, tmp_path, make_scan):
    found = export_bundle(saved, tmp_path / 'nyul.tar')
    assert found.digest == bundle.digest(saved)
    assert import_bundle(tmp_path / 'nyul.tar', tmp_path / 'there' / 'nyul') == found.digest
    assert bundle.digest(tmp_path / 'there' / 'nyul') == found.digest
    assert sorted(os.listdir(tmp_path / 'there')) == ['nyul']
    scan = make_scan(seed=9)
    images = [
        bundle.load(folder).harmonize(scan, Canonical()).image
        for folder in (saved, tmp_path / 'there' / 'nyul')
    ]
    assert np.array_equal(*images)


def test_the_same_bundle_gives_the_same_bytes(saved, tmp_path):
    export_bundle(saved, tmp_path / 'a.tar')
    os.utime(saved / 'card.json', (1, 1))
    os.chmod(saved / 'card.json', 0o600)
    export_bundle(saved, tmp_path / 'b.tar')
    assert (tmp_path / 'a.tar').read_bytes() == (tmp_path / 'b.tar').read_bytes()
    with tarfile.open(tmp_path / 'a.tar') as found:
        entries = found.getmembers()
    assert [entry.name for entry in entries] == ['card.json', 'model.safetensors']
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {(0, 0, 0, '', '', 0o644)}


def test_what_another_program_packed_is_taken_too(saved, tmp_path):
    file = archive(
        tmp_path / 'x.tar', [(n, c, {'uid': 1000, 'mtime': 12345}) for n, c, _ in parts(saved)[::-1]]
    )
    assert import_bundle(file, tmp_path / 'new') == bundle.digest(saved)


def test_a_file_that_is_there_is_not_replaced(saved, tmp_path):
    (tmp_path / 'thesis.tar').write_text('all of it')
    (tmp_path / 'link.tar').symlink_to('nowhere')
    for name in ('thesis.tar', 'link.tar'):
        with pytest.raises(UsageError, match='there already'):
            export_bundle(saved, tmp_path / name)
    assert (tmp_path / 'thesis.tar').read_text() == 'all of it'
    with pytest.raises(UsageError, match=r'\.tar'):
        export_bundle(saved, tmp_path / 'x.zip')


def test_nothing_is_left_of_an_export_that_failed(saved, tmp_path, monkeypatch):
    def full(parts, handle):
        handle.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(bundle_file, '_pack', full)
    with pytest.raises(OSError, match='No space'):
        export_bundle(saved, tmp_path / 'x.tar')
    assert os.listdir(tmp_path) == ['model']


def test_a_damaged_bundle_is_not_exported(saved, tmp_path):
    (saved / 'model.safetensors').write_bytes(b'half')
    with pytest.raises(ConfigurationError, match='damaged'):
        export_bundle(saved, tmp_path / 'x.tar')
    assert os.listdir(tmp_path) == ['model']


@pytest.mark.parametrize('kind', ['folder', 'empty', 'file', 'link'])
def test_nothing_is_imported_over_anything(saved, tmp_path, kind):
    export_bundle(saved, tmp_path / 'x.tar')
    there = tmp_path / 'there'
    if kind == 'file':
        there.write_text('mine')
    elif kind == 'link':
        there.symlink_to('nowhere')
    else:
        there.mkdir()
        if kind == 'folder':
            (there / 'mine').touch()
    with pytest.raises(UsageError, match='something in the place'):
        import_bundle(tmp_path / 'x.tar', there)
    assert there.is_symlink() == (kind == 'link')


# --- Files that want to harm ---


def refused(file, tmp_path, match=None):
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigurationError, match=match):
        import_bundle(file, tmp_path / 'new')
    # Neither the bundle nor anything else has come into being.
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ('name', 'changes', 'said'),
    [
        ('../card.json', {}, r'holds "\.\./card\.json"'),
        ('/etc/passwd', {}, 'holds "/etc/passwd"'),
        ('./card.json', {}, 'holds'),
        ('sub/card.json', {}, 'holds'),
        ('card.json\x1b[2J', {}, r'holds "card\.json\\x1b'),
        ('run.py', {}, r'holds "run\.py"'),
        ('model', {'type': tarfile.DIRTYPE}, 'holds'),
        ('card.json', {'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, 'is a link'),
        ('card.json', {'type': tarfile.LNKTYPE, 'linkname': '../secret'}, 'is a link'),
        ('card.json', {'type': tarfile.CHRTYPE}, 'is a link or something else'),
        ('card.json', {'type': tarfile.FIFOTYPE}, 'is a link or something else'),
        ('card.json', {'type': tarfile.GNUTYPE_SPARSE}, 'is a link or something else'),
        ('card.json', {'type': b'x'}, 'is a link or something else'),
    ],
)
def test_other_names_and_kinds_are_refused(saved, tmp_path, name, changes, said):
    content = b'' if changes.get('type') in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE) else b'{}'
    for entries in ([(name, content, changes), *parts(saved)], [*parts(saved), (name, content, changes)]):
        file = tmp_path / 'x.tar'
        archive(file, entries)
        refused(file, tmp_path, rf'{said}|twice' if name == 'card.json' else said)


def test_the_same_name_twice_is_refused(saved, tmp_path):
    file = archive(tmp_path / 'x.tar', [*parts(saved), parts(saved)[0]])
    refused(file, tmp_path, r'card\.json twice')


@pytest.mark.parametrize('missing', ['card.json', 'model.safetensors'])
def test_half_a_bundle_is_refused(saved, tmp_path, missing):
    file = archive(tmp_path / 'x.tar', [part for part in parts(saved) if part[0] != missing])
    refused(file, tmp_path, f'{missing} is missing')


def test_sizes_are_checked_before_anything_is_read(saved, tmp_path):
    for size in (10**13, 8 * 10**9, -5):
        entry = tarfile.TarInfo('model.safetensors')
        entry.size = size
        (tmp_path / 'x.tar').write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b'little')
        refused(tmp_path / 'x.tar', tmp_path, 'cut off' if size == 8 * 10**9 else 'larger than')
    entry = tarfile.TarInfo('card.json')
    entry.size = 17_000_000
    with (tmp_path / 'x.tar').open('wb') as out:
        out.write(entry.tobuf())
        out.truncate(20_000_000)
    refused(tmp_path / 'x.tar', tmp_path, r'card\.json is larger than 16 MB')
    with (tmp_path / 'x.tar').open('wb') as out:
        out.truncate(9_000_000_000)  # a hole: it takes no room
    refused(tmp_path / 'x.tar', tmp_path, 'larger than')


@pytest.mark.parametrize(
    'content', [b'', b'\0' * 4096, b'PK\x03\x04' + b'x' * 2000, b'\x1f\x8b' + b'x' * 2000, b'card.json' * 200]
)
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / 'x.tar').write_bytes(content)
    refused(tmp_path / 'x.tar', tmp_path, 'is no bundle as')


def test_a_compressed_archive_is_refused(saved, tmp_path):
    with tarfile.open(tmp_path / 'x.tar', 'w:gz') as out:
        out.add(saved / 'card.json', 'card.json')
    refused(tmp_path / 'x.tar', tmp_path, 'compressed')


def test_every_cut_is_refused(saved, tmp_path):
    export_bundle(saved, tmp_path / 'whole.tar')
    whole = (tmp_path / 'whole.tar').read_bytes()
    end = 2 * 512 + sum(len(content) for _, content, _ in parts(saved))
    for length in range(0, end, 331):
        (tmp_path / 'x.tar').write_bytes(whole[:length])
        refused(tmp_path / 'x.tar', tmp_path)


def test_flipped_bits_are_found_or_change_nothing(saved, tmp_path):
    export_bundle(saved, tmp_path / 'whole.tar')
    whole, digest = (tmp_path / 'whole.tar').read_bytes(), bundle.digest(saved)
    end, refusals = 2 * 512 + sum(len(content) for _, content, _ in parts(saved)), 0
    for place in np.random.default_rng(0).integers(0, end, 60):
        spoiled = bytearray(whole)
        spoiled[place] ^= 4
        (tmp_path / 'x.tar').write_bytes(bytes(spoiled))
        new = tmp_path / f'new{place}'
        try:
            # Digits of the card that name no part of the method may be others: then the digest says so.
            import_bundle(tmp_path / 'x.tar', new, digest=digest)
        except ConfigurationError:
            refusals += 1
            assert not new.exists()
        else:
            assert bundle.digest(new) == digest
    assert refusals > 30


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'x.tar')
    refused(tmp_path / 'x.tar', tmp_path, 'no regular file')


def test_a_bundle_that_cannot_be_loaded_is_refused(saved, tmp_path):
    card = json.loads((saved / 'card.json').read_text())
    weights = parts(saved)[1]
    spoiled = [
        {**card, 'name': 'no-such-method'}, {**card, 'format': 2}, {**card, 'tensors_sha256': '0' * 64},
        {**card, 'settings': {'contrasts': ['T2w']}}, {**card, 'name': '../../evil'},
    ]  # fmt: skip
    for content in spoiled:
        file = archive(tmp_path / 'x.tar', [('card.json', json.dumps(content).encode(), {}), weights])
        refused(file, tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        import_bundle(file, tmp_path / 'new')
    assert caught.value.where == str(file)  # not a folder that is gone by then


def test_another_bundle_than_was_promised_is_refused(saved, tmp_path):
    digest = export_bundle(saved, tmp_path / 'x.tar').digest
    with pytest.raises(ConfigurationError, match=digest):
        import_bundle(tmp_path / 'x.tar', tmp_path / 'new', digest='0' * 64)
    assert not (tmp_path / 'new').exists()
    assert import_bundle(tmp_path / 'x.tar', tmp_path / 'new', digest=digest.upper()) == digest


# --- Names ---


def test_sites_may_get_other_names(cohort, tmp_path, make_scan):
    method = Robust()
    method.fit(cohort, target=Site('B'))
    bundle.save(method, tmp_path / 'model')
    found = export_bundle(tmp_path / 'model', tmp_path / 'x.tar', rename={'B': 'scanner1'})
    assert found.names == ['scanner1']
    assert found.digest != bundle.digest(tmp_path / 'model')
    assert import_bundle(tmp_path / 'x.tar', tmp_path / 'new') == found.digest
    scan = make_scan(seed=5)
    renamed = bundle.load(tmp_path / 'new').harmonize(scan, Site('scanner1')).image
    assert np.array_equal(renamed, method.harmonize(scan, Site('B')).image)
    with pytest.raises(UsageError, match='no site or target "C"') as caught:
        export_bundle(tmp_path / 'model', tmp_path / 'y.tar', rename={'C': 'x'})
    assert caught.value.fix == 'It has: B.'


def test_the_image_that_was_the_target_is_not_named_unless_asked(cohort, tmp_path, make_scan):
    from bidsharm.harmonizers.contract import Cohort

    method, aim = Robust(), Reference('/data/sub-anna_T1w.nii.gz')
    method.fit(Cohort(cohort.scans[:1]), target=aim)
    bundle.save(method, tmp_path / 'model')
    with pytest.raises(UsageError, match='may tell who was scanned: sub-anna_T1w') as caught:
        export_bundle(tmp_path / 'model', tmp_path / 'x.tar')
    assert '--rename' in caught.value.fix
    assert export_bundle(tmp_path / 'model', tmp_path / 'x.tar', keep_names=True).names == [
        'reference:sub-anna_T1w.nii.gz'
    ]
    export_bundle(tmp_path / 'model', tmp_path / 'y.tar', rename={'sub-anna_T1w.nii.gz': 'ours'})
    assert b'anna' not in (tmp_path / 'y.tar').read_bytes()
    import_bundle(tmp_path / 'y.tar', tmp_path / 'new')
    scan = make_scan(seed=5)
    renamed = bundle.load(tmp_path / 'new').harmonize(scan, Reference('ours')).image
    assert np.array_equal(renamed, method.harmonize(scan, aim).image)


def test_sites_that_name_subjects_are_found(tmp_path):
    from bidsharm.harmonizers.combat import ComBat
    from bidsharm.harmonizers.table import FeatureTable

    method = ComBat()
    rows = np.random.default_rng(0).normal(size=(20, 3))
    method.fit(FeatureTable(rows, ('a', 'b', 'c'), ('sub-01', 'Y') * 10))
    bundle.save(method, tmp_path / 'model')
    with pytest.raises(UsageError, match='sub-01'):
        export_bundle(tmp_path / 'model', tmp_path / 'x.tar')
    with pytest.raises(UsageError, match='same name'):
        export_bundle(tmp_path / 'model', tmp_path / 'x.tar', rename={'sub-01': 'Y'})
    export_bundle(tmp_path / 'model', tmp_path / 'x.tar', rename={'sub-01': 'Y', 'Y': 'Z'})
    import_bundle(tmp_path / 'x.tar', tmp_path / 'new')
    assert set(bundle.load_any(tmp_path / 'new').sites) == {'Y', 'Z'}


# --- The commands ---


def test_both_commands(saved, tmp_path, capsys):
    file, new = str(tmp_path / 'x.tar'), str(tmp_path / 'new')
    assert main(['export', str(saved), file]) == 0
    digest = bundle.digest(saved)
    said = capsys.readouterr().out
    assert digest in said
    assert 'canonical' in said
    assert main(['export', str(saved), file]) == ExitCode.USAGE
    assert main(['import', file, new, '--digest', digest]) == 0
    said = capsys.readouterr().out
    assert f'{new}: whole' in said
    assert digest in said
    assert main(['import', file, new]) == ExitCode.USAGE
    assert main(['export', str(saved), str(tmp_path / 'y.tar'), '--rename', 'no']) == ExitCode.USAGE
    (tmp_path / 'x.tar').write_bytes(b'no')
    assert main(['import', file, str(tmp_path / 'other')]) == ExitCode.CONFIGURATION
    assert 'x.tar' in capsys.readouterr().err
