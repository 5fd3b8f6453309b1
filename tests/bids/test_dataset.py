"""The root of the derivatives."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bidsharm import __version__
from bidsharm.bids.dataset import prepare_root, read_json
from bidsharm.errors import UsageError


def state(root):
    """Return content, time and identity of every file: a file replaced by an equal one is seen too."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def described(settings):
    prepare_root(settings)
    return json.loads((settings.output_dir / 'dataset_description.json').read_text())


def test_description(tree, tmp_path):
    settings = tree.settings(derivatives={'smriprep': str(tmp_path / 'smri prep')})
    content = described(settings)
    assert content['Name'] == 'bidsharm: Tiny heads'
    assert content['DatasetType'] == 'derivative'
    assert content['BIDSVersion'].startswith('1.')
    assert content['License'] == 'CC0'
    assert [(maker['Name'], maker['Version']) for maker in content['GeneratedBy']] == [
        ('bidsharm', __version__)
    ]
    assert 'Container' not in content['GeneratedBy'][0]
    assert content['SourceDatasets'] == [{'URL': tree.root.as_uri()}]
    assert content['DatasetLinks'] == {
        'raw': tree.root.as_uri(),
        'smriprep': (tmp_path / 'smri prep').as_uri(),
    }
    assert ' ' not in content['DatasetLinks']['smriprep'], 'links are URIs'


def test_doi_and_container(tree, monkeypatch):
    (tree.root / 'dataset_description.json').write_text('{"Name": "x", "DatasetDOI": "doi:10.1/x"}')
    monkeypatch.setenv('BIDSHARM_CONTAINER', 'docker:bidsharm/bidsharm:1.0')
    content = described(tree.settings())
    assert content['SourceDatasets'][0]['DOI'] == 'doi:10.1/x'
    assert content['GeneratedBy'][0]['Container'] == {'Type': 'docker', 'Tag': 'bidsharm/bidsharm:1.0'}
    assert 'License' not in content


@pytest.mark.parametrize('raw', [None, '', '{', '[]', '"x"', '[' * 100_000, '{"Name": null}'])
def test_raw_data_set_without_a_usable_description(tree, raw):
    file = tree.root / 'dataset_description.json'
    file.unlink()
    if raw is not None:
        file.write_text(raw)
    assert described(tree.settings())['Name'].startswith('bidsharm: ')


def test_second_call_touches_nothing(tree):
    """Someone who may read but not replace the root files of a shared folder can still run."""
    settings = tree.settings()
    prepare_root(settings)
    before = state(settings.output_dir)
    assert set(before) == {
        'dataset_description.json',
        '.bidsignore',
        'README.md',
        'descriptions.tsv',
        'dseg.tsv',
    }
    prepare_root(settings)
    assert state(settings.output_dir) == before


def test_readme_of_the_user_stays(tree):
    settings = tree.settings()
    settings.output_dir.mkdir()
    (settings.output_dir / 'README.md').write_text('mine')
    prepare_root(settings)
    assert (settings.output_dir / 'README.md').read_text() == 'mine'


def test_what_changed_is_written_anew(tree):
    settings = tree.settings()
    before = described(settings)
    (settings.output_dir / 'dseg.tsv').write_text('broken')
    after = described(replace(settings, derivatives={'more': tree.root / 'derivatives'}))
    assert set(after['DatasetLinks']) - set(before['DatasetLinks']) == {'more'}
    with (settings.output_dir / 'dseg.tsv').open() as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert [(row['index'], row['abbreviation']) for row in rows] == [('1', 'GM'), ('2', 'WM'), ('3', 'CSF')]


@pytest.mark.parametrize(
    'content',
    [
        '{"Name": "raw", "BIDSVersion": "1.10.0"}',
        '{"GeneratedBy": [{"Name": "fMRIPrep"}]}',
        '{"GeneratedBy": [{"Name": "bidsharm2"}, "bidsharm"]}',
        '{"GeneratedBy": {"Name": "bidsharm"}}',
        '{"GeneratedBy": null}',
        '{"GeneratedBy": 5}',
        '{"GeneratedBy": ',
        '',
    ],
)
def test_another_data_set_is_refused_untouched(tree, content):
    settings = tree.settings()
    settings.output_dir.mkdir()
    (settings.output_dir / 'dataset_description.json').write_text(content)
    before = state(settings.output_dir)
    with pytest.raises(UsageError, match='another data set') as caught:
        prepare_root(settings)
    assert caught.value.where == str(settings.output_dir)
    assert state(settings.output_dir) == before


def test_a_file_in_the_way(tree):
    settings = tree.settings()
    settings.output_dir.write_text('I am a file')
    with pytest.raises(UsageError, match='cannot be made'):
        prepare_root(settings)
    with pytest.raises(UsageError, match='cannot be made'):
        prepare_root(replace(settings, output_dir=settings.output_dir / 'below'))
    assert settings.output_dir.read_text() == 'I am a file'


def test_folder_without_permission(tree, monkeypatch):
    settings = tree.settings()
    settings.output_dir.mkdir()
    # Permissions do not bind root, whom tests in containers run as: ask for the answer instead.
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != settings.output_dir)
    with pytest.raises(UsageError, match='cannot be written'):
        prepare_root(settings)
    assert state(settings.output_dir) == {}


@pytest.mark.parametrize('content', ['{', '[1]', 'null', '\x00'])
def test_broken_json_is_an_empty_object(tmp_path, content):
    path = tmp_path / 'x.json'
    path.write_text(content)
    assert read_json(path) == {}
    assert read_json(tmp_path / 'gone.json') == {}


def test_validator_accepts_the_root(tree):
    program = Path(sys.executable).with_name('bids-validator-deno')
    if not program.exists():
        pytest.skip('bids-validator-deno is not installed')
    settings = tree.settings()
    prepare_root(settings)
    scan = settings.output_dir / 'sub-01/anat'
    scan.mkdir(parents=True)
    shutil.copy(tree.add('sub-01_T1w'), scan / 'sub-01_desc-harmonized_T1w.nii.gz')
    (scan / 'sub-01_desc-harmonized_T1w.json').write_text('{"SkullStripped": true}')
    done = subprocess.run(
        [program, settings.output_dir, '--json', '--ignoreWarnings'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)['issues']['issues'] == []
