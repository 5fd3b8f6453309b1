"""Files that make the image agree with the package, and its scripts do what they say."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import bidsharm

ROOT = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    """Import a script that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path: Path) -> dict[str, str]:
    """Return the versions by name."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[A-Za-z0-9_.-]+==[^=\s]+', line) for line in lines)
    return {re.sub('[-_.]+', '-', name).lower(): version for name, version in (line.split('==') for line in lines)}  # fmt: skip


def test_the_version_is_that_of_the_package():
    text = (ROOT / 'Dockerfile').read_text()
    assert set(re.findall(r'^ARG VERSION=(\S+)', text, flags=re.MULTILINE)) == {bidsharm.__version__}


def test_every_stage_has_the_label_that_finds_what_builds_leave():
    stages = re.split(r'^FROM ', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)[1:]
    own = [stage for stage in stages if stage.startswith('${BASE}')]  # the others come from one of these
    assert len(own) >= 2
    assert all(
        re.search(r'^(LABEL| +)\s*.*org\.bids-app\.name="bidsharm"', stage, flags=re.MULTILINE)
        for stage in own
    )


def test_each_library_is_pinned_once():
    asked, along = pins(ROOT / 'constraints.txt'), pins(ROOT / 'container' / 'lock.txt')
    assert not set(asked) & set(along)
    assert {'pillow', 'jinja2', 'sympy'} <= set(along)


def test_every_library_is_pinned():
    """All that bidsharm's requirements lead to here; with one that is missing, images would differ from day to day."""
    pinned = {**pins(ROOT / 'constraints.txt'), **pins(ROOT / 'container' / 'lock.txt')}
    with (ROOT / 'pyproject.toml').open('rb') as file:
        project = tomllib.load(file)['project']
    waiting = [
        Requirement(text)
        for text in (*project['dependencies'], *project['optional-dependencies']['validate'])
    ]
    seen: set[tuple[str, ...]] = set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub('[-_.]+', '-', requirement.name).lower()
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        extras = requirement.extras or {''}
        for text in metadata.requires(name) or []:
            found = Requirement(text)
            if found.marker is None or any(found.marker.evaluate({'extra': extra}) for extra in extras):
                waiting.append(found)
    assert {name for name, *_ in seen} - set(pinned) == set()


def test_what_the_build_copies_is_not_ignored():
    shown = {line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')}
    copied = re.findall(r'^COPY (?!--from)(.+) \S+$', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)
    named = {name.split('/')[0] for line in copied for name in line.split()}
    assert named == shown
    assert all((ROOT / name).exists() for name in shown)


def test_the_definition_for_apptainer_runs_bidsharm():
    sys.path.insert(0, str(ROOT / 'tests' / 'e2e'))
    try:
        sections = load(ROOT / 'tests' / 'e2e' / 'apptainer.py').read_definition(
            (ROOT / 'Apptainer.def').read_text()
        )
    finally:
        sys.path.pop(0)
    assert sections['runscript'] == 'exec bidsharm "$@"'
    assert 'singularity:' in sections['environment']
    assert sections['arguments'] == 'ARCHIVE=bidsharm.tar'


class TestANTs:
    """`fetch_ants.py`."""

    programs = ('N4BiasFieldCorrection', 'antsApplyTransforms', 'antsRegistration')

    def archive(self, folder: Path, programs: tuple[str, ...] = programs) -> tuple[str, str]:
        """Return address and digest of an archive with programs that tell a version."""
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, 'w') as made:
            for name in (*programs, 'antsOther'):
                made.writestr(f'ants-2.5.4/bin/{name}', '#!/bin/sh\necho "ANTs Version: 2.5.4"\n')
        file = folder / 'ants.zip'
        file.write_bytes(memory.getvalue())
        return file.as_uri(), hashlib.sha256(memory.getvalue()).hexdigest()

    def test_three_programs_are_taken(self, tmp_path):
        url, digest = self.archive(tmp_path)
        told = load(ROOT / 'container' / 'fetch_ants.py').main(url, digest, tmp_path / 'bin')
        assert told == 'ANTs Version: 2.5.4'
        assert {path.name for path in (tmp_path / 'bin').iterdir()} == set(self.programs)

    @pytest.mark.parametrize('url', ['', 'file:///nowhere/ants.zip'])
    def test_without_it_antspyx_serves(self, tmp_path, url):
        told = load(ROOT / 'container' / 'fetch_ants.py').main(url, '0', tmp_path / 'bin')
        assert 'antspyx serves' in told
        assert not list((tmp_path / 'bin').iterdir())

    def test_another_file_is_refused(self, tmp_path):
        url, _ = self.archive(tmp_path)
        with pytest.raises(SystemExit, match='ANTS_SHA256'):
            load(ROOT / 'container' / 'fetch_ants.py').main(url, '0' * 64, tmp_path / 'bin')
        url, digest = self.archive(tmp_path, self.programs[:2])
        with pytest.raises(SystemExit, match='antsRegistration 0 times'):
            load(ROOT / 'container' / 'fetch_ants.py').main(url, digest, tmp_path / 'bin2')


class TestTrim:
    """`trim.sh`."""

    def test_tests_go_and_what_is_imported_stays(self, tmp_path):
        site = tmp_path / 'lib' / 'python3.11' / 'site-packages'
        gone = (
            'a/tests/test_a.py',
            'a/b/test/x.py',
            'torch/include/x.h',
            'torch/bin/protoc',
            'a/lib.a',
            'a/x.js.map',
        )
        stays = ('a/testing/x.py', 'a/__init__.pyi', 'torch/bin/torch_shm_manager', 'a/x.js', 'a/tests.py')
        for name in (*gone, *stays):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text('x')
        subprocess.run(['sh', ROOT / 'container' / 'trim.sh', tmp_path], check=True, capture_output=True)
        left = {str(path.relative_to(site)) for path in site.rglob('*') if path.is_file()}
        assert left == set(stays)


def test_the_list_of_what_is_inside(tmp_path, monkeypatch):
    module = load(ROOT / 'container' / 'sbom.py')
    monkeypatch.setattr(module, 'debian', lambda: iter([]))
    monkeypatch.setattr(module, 'ANTS', tmp_path / 'none')
    validated = []
    monkeypatch.setattr(module, 'validate', lambda text, version: validated.append(version))
    weights = tmp_path / 'lib/python3.11/site-packages/bidsharm/weights/isotone/T1w/model.safetensors'
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b'weights')
    listed = tmp_path / 'python.json'
    listed.write_text(
        json.dumps({'specVersion': '1.6', 'components': [{'type': 'library', 'name': 'torch'}]})
    )
    module.main(listed, tmp_path, '0.1.0', tmp_path / 'share' / 'sbom.json')
    made = json.loads((tmp_path / 'share' / 'sbom.json').read_text())
    found = {item['name']: item for item in made['components']}
    assert set(found) == {'torch', 'python', 'bidsharm/weights/isotone/T1w/model.safetensors'}
    assert found['bidsharm/weights/isotone/T1w/model.safetensors']['hashes'][0]['content'] == hashlib.sha256(b'weights').hexdigest()  # fmt: skip
    assert made['metadata']['component']['name'] == 'bidsharm'
    assert validated == ['1.6']
