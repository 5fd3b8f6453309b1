"""A step in a process of its own: what it answers, and how it may end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bidsharm import errors
from bidsharm.errors import BidsharmError, ScanError
from bidsharm.harmonizers import execution
from bidsharm.imaging import extraction
from bidsharm.interfaces import isolated
from bidsharm.interfaces.isolated import run_isolated

#: A Python that knows steps for these tests; it is started as the real one is: -m MODULE STEP REQUEST RESPONSE.
INTERPRETER = """\
#!{python}
import os, signal, subprocess, sys, time
from bidsharm import errors
from bidsharm.interfaces import isolated

class Foreign(errors.ScanError):
    pass

def fail(request):
    kind = Foreign if request['kind'] == 'Foreign' else getattr(errors, request['kind'])
    raise kind('It is “wrong”.', where='sub-01 ü', fix='Mend it.')

def end(request):
    print('loading the network')
    print('almost there', file=sys.stderr, flush=True)
    if 'code' in request:
        os._exit(request['code'])
    os.kill(os.getpid(), request['signal'])
    time.sleep(60)

def sleep(request):
    print('going to sleep', flush=True)
    time.sleep(60)

def raise_plain(request):
    raise KeyError('weights')

def environment(request):
    names = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
    return {{'threads': [os.environ[name] for name in names], 'pid': os.getpid(), 'stdin': sys.stdin.read(), **request}}

def torch_threads(request):
    import torch

    return {{'threads': torch.get_num_threads()}}

isolated.STEPS.update(
    torch_threads=torch_threads,
    fail=fail, end=end, sleep=sleep, raise_plain=raise_plain, environment=environment,
    unjsonable=lambda request: {{'array': object()}},
)
assert sys.argv[1:3] == ['-m', 'bidsharm.interfaces.isolated'], sys.argv
sys.exit(isolated.main(sys.argv[3:]))
"""


@pytest.fixture(autouse=True)
def interpreter(tmp_path_factory, monkeypatch):
    file = tmp_path_factory.mktemp('bin') / 'python'
    file.write_text(INTERPRETER.format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(file))
    root = str(Path(isolated.__file__).parents[2])
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])))


def refused(step: str, folder: Path, **request) -> BidsharmError:
    with pytest.raises(BidsharmError) as caught:
        run_isolated(step, {'name': 'sub-01_T1w', **request}, folder)
    return caught.value


def test_answer_of_another_process(tmp_path):
    answer = run_isolated('environment', {'name': 'x', 'text': 'ü', 'number': 0.1}, tmp_path, threads=3)
    assert answer['threads'] == ['3', '3', '3']
    assert answer['pid'] != os.getpid()
    assert answer['stdin'] == ''  # it does not wait for a keyboard
    assert (answer['text'], answer['number']) == ('ü', 0.1)


@pytest.mark.parametrize('threads', [1, 2])
def test_torch_takes_the_threads_that_the_step_was_given(threads, tmp_path):
    taken = run_isolated('torch_threads', {}, tmp_path, threads=threads)['threads']
    assert taken == min(threads, os.cpu_count() or 1)


def test_threads_are_never_below_one(tmp_path):
    assert run_isolated('environment', {}, tmp_path, threads=0)['threads'] == ['1', '1', '1']


@pytest.mark.parametrize(
    'kind', ['ScanError', 'NotServed', 'UsageError', 'ConfigurationError', 'NothingToDo', 'MissingNeed']
)
def test_errors_of_ours_come_back_as_they_were(kind, tmp_path):
    error = refused('fail', tmp_path, kind=kind)
    assert type(error) is getattr(errors, kind)
    assert (error.what, error.where, error.fix) == ('It is “wrong”.', 'sub-01 ü', 'Mend it.')


def test_errors_of_other_packages_come_back_as_scan_errors(tmp_path):
    error = refused('fail', tmp_path, kind='Foreign')
    assert type(error) is ScanError
    assert error.what == 'It is “wrong”.'


@pytest.mark.parametrize(
    ('end', 'words'),
    [
        ({'signal': 11}, 'SIGSEGV'),
        ({'signal': 9}, 'SIGKILL, probably because memory ran out'),
        ({'signal': 6}, 'SIGABRT'),
        ({'signal': 40}, 'signal 40'),
        ({'code': 7}, 'code 7'),
        ({'code': 0}, 'code 0'),
    ],
)
def test_a_crash_is_explained(end, words, tmp_path):
    """However it ends, the scan is named, and so are the last words of the process."""
    error = refused('end', tmp_path, **end)
    assert type(error) is ScanError
    assert error.where == 'sub-01_T1w'
    assert words in error.what
    assert '"end"' in error.what
    assert 'almost there' in error.what


def test_errors_of_the_code_show_where_they_arose(tmp_path):
    error = refused('raise_plain', tmp_path)
    assert 'code 1' in error.what
    assert "KeyError: 'weights'" in error.what


def test_an_answer_that_cannot_be_written_is_an_error(tmp_path):
    error = refused('unjsonable', tmp_path)
    assert 'not JSON serializable' in error.what
    assert not (tmp_path / 'unjsonable-response.json').exists()


def test_what_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(ScanError) as caught:
        run_isolated('sleep', {'name': 'sub-01_T1w'}, tmp_path, limit_s=1)
    assert 'more than 1 s and was stopped' in caught.value.what
    assert caught.value.where == 'sub-01_T1w'


def test_an_old_answer_does_not_hide_a_crash(tmp_path):
    """A folder that is used again holds the answer of the last time."""
    (tmp_path / 'end-response.json').write_text('{"result": {"out_file": "old"}}')
    assert 'SIGSEGV' in refused('end', tmp_path, signal=11).what


def test_the_log_stays_for_a_closer_look(tmp_path):
    refused('end', tmp_path, signal=11)
    assert (tmp_path / 'end.log').read_text().splitlines()[-1] == 'almost there'


def test_only_the_last_words_are_repeated(tmp_path, monkeypatch):
    (tmp_path / 'x.log').write_text('\n'.join(f'line {index}' for index in range(100)))
    words = isolated._tail(tmp_path / 'x.log')
    assert 'line 99' in words
    assert 'line 90' not in words


def test_response_is_whole_or_not_there(tmp_path):
    """The parent must never read half a file: it is written aside and renamed."""
    ask, answer = tmp_path / 'ask.json', tmp_path / 'answer.json'
    ask.write_text('{}')
    isolated.STEPS['echo'] = lambda request: {'fine': True}
    try:
        assert isolated.main(['echo', str(ask), str(answer)]) == 0
    finally:
        del isolated.STEPS['echo']
    assert json.loads(answer.read_text()) == {'result': {'fine': True}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['answer.json', 'ask.json']


@pytest.mark.parametrize(
    ('device', 'used'), [('cuda:1', 'cuda:1'), ('cuda:0', 'cuda:0'), ('cpu', 'cpu'), ('mps', 'cpu')]
)
def test_deepbet_holds_the_card_that_it_runs_on(device, used, monkeypatch):
    """deepbet is not run on Apple GPUs: it needs none of their time either."""
    events: list[str] = []

    @contextlib.contextmanager
    def lock(name: str) -> Iterator[None]:
        events.append(f'take {name}')
        yield
        events.append('give')

    def mask(in_file: Path, out_file: Path, *, device: str) -> dict[str, Any]:
        events.append(f'{in_file.name} to {out_file.name} on {device}')
        return {'volume_ml': 1.0}

    monkeypatch.setattr(execution, 'device_lock', lock)
    monkeypatch.setattr(extraction, 'deepbet_mask', mask)
    request = {'in_file': '/x/head.nii', 'out_file': '/x/mask.nii', 'device': device, 'name': 'sub-01_T1w'}
    assert isolated.STEPS['deepbet'](request) == {'volume_ml': 1.0}
    assert events == [f'take {used}', f'head.nii to mask.nii on {used}', 'give']
