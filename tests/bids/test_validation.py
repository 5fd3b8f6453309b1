"""The validator informs; it never ends a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bidsharm.bids import validation
from bidsharm.bids.validation import validate


@pytest.fixture
def answer(monkeypatch):
    """Let the validator answer what the test says."""

    def set_answer(stdout='', error=None):
        calls = []

        def run(command, **options):
            calls.append((command, options))
            if error:
                raise error
            return subprocess.CompletedProcess(command, 0, stdout=stdout, stderr='')

        monkeypatch.setattr(validation.shutil, 'which', lambda name: f'/usr/bin/{name}')
        monkeypatch.setattr(validation.subprocess, 'run', run)
        return calls

    return set_answer


def issues(*pairs):
    return json.dumps({'issues': {'issues': [{'code': code, 'severity': level} for code, level in pairs]}})


def test_no_issue_no_word(answer, tmp_path):
    calls = answer(issues())
    assert validate(tmp_path) == ''
    (command, options) = calls[0]
    assert str(tmp_path) in command
    assert options['timeout'] == validation.LIMIT_S


def test_errors_are_counted_and_named(answer, tmp_path):
    answer(issues(*[('NOT_INCLUDED', 'error')] * 3, ('EMPTY_FILE', 'error'), ('README_SHORT', 'warning')))
    said = validate(tmp_path)
    assert '4 errors' in said
    assert 'NOT_INCLUDED (3), EMPTY_FILE (1)' in said
    assert 'README_SHORT' not in said


def test_warnings_alone_are_no_word(answer, tmp_path):
    answer(issues(('README_SHORT', 'warning')))
    assert validate(tmp_path) == ''


@pytest.mark.parametrize(
    'stdout', ['', 'Segmentation fault', '[]', '{}', '{"issues": null}', '{"issues": []}']
)
def test_no_sensible_answer_is_said(answer, tmp_path, stdout):
    answer(stdout)
    assert 'gave no answer' in validate(tmp_path)


@pytest.mark.parametrize('error', [OSError('no'), subprocess.TimeoutExpired('x', 1)])
def test_a_validator_that_dies_or_hangs_is_said(answer, tmp_path, error):
    answer(error=error)
    assert type(error).__name__ in validate(tmp_path)


def test_a_missing_validator_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(validation.sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setattr(validation.shutil, 'which', lambda name: None)
    assert 'not installed' in validate(tmp_path)


def test_the_real_validator(tree):
    if not Path(sys.executable).with_name('bids-validator-deno').exists():
        pytest.skip('bids-validator-deno is not installed')
    tree.add('sub-01_T1w')
    assert validate(tree.root) == ''
    (tree.root / 'sub-01/anat/sub-01_bogus.nii.gz').touch()
    assert 'errors' in validate(tree.root)
