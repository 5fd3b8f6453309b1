"""The checks of ``bidsharm-doctor``: each can say that all is well, and each can say what is not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from bidsharm.workflows import scratch
from bidsharm.workflows.doctor import data, folders, machine, models, probe, software, trial
from bidsharm.workflows.doctor.findings import (
    Asked,
    Check,
    Finding,
    Verdict,
    discreet,
    examine,
    examine_all,
    ok,
)
from bidsharm.workflows.doctor.probe import Unanswered, ask

from bidsharm.bids import validation
from bidsharm.errors import ScanError
from bidsharm.harmonizers import execution, registry
from bidsharm.harmonizers.linear import Robust

Answer = dict[str, Any] | Exception


def verdicts(found: Iterable[Finding]) -> list[str]:
    return [str(item.verdict) for item in found]


def told(found: Iterable[Finding], verdict: str) -> str:
    """Return what the only finding of a verdict says, with its advice."""
    (chosen,) = [item for item in found if item.verdict == verdict]
    return f'{chosen.what} {chosen.fix}'


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says what other processes answer, by question or by question and first argument."""
    known: dict[str, Answer] = {}

    def answer(question: str, *arguments: str, limit_s: float) -> dict[str, Any]:
        found = known.get(f'{question} {arguments[0]}' if arguments else question, known.get(question))
        assert found is not None, f'nobody asks for {question} {arguments}'
        if isinstance(found, Exception):
            raise found
        return found

    for module in (software, machine, models):
        monkeypatch.setattr(module, 'ask', answer)
    return known.update


class TestRunning:
    """How checks are run."""

    def test_a_finding_knows_its_check(self) -> None:
        (found,) = examine(Check('G', 'n', lambda asked: [ok('fine', number=3)]), Asked())
        assert (found.group, found.check, found.verdict, found.values) == ('G', 'n', 'ok', {'number': 3})

    def test_an_error_is_a_problem_of_its_check(self) -> None:
        def look(asked: Asked) -> Iterable[Finding]:
            yield ok('so far')
            raise ZeroDivisionError('by 0')

        found = list(examine_all([Check('G', 'a', look), Check('G', 'b', lambda asked: [ok('x')])], Asked()))
        assert verdicts(found) == ['ok', 'problem', 'ok']
        assert 'ZeroDivisionError: by 0' in found[1].what

    def test_an_error_of_ours_keeps_its_advice(self) -> None:
        def look(asked: Asked) -> Iterable[Finding]:
            raise ScanError('It is odd.', where='--here', fix='Mend it.')

        assert told(examine(Check('G', 'a', look), Asked()), 'problem') == '--here: It is odd. Mend it.'

    def test_a_hang_is_a_problem_of_its_check(self) -> None:
        def look(asked: Asked) -> Iterable[Finding]:
            yield ok('so far')
            time.sleep(60)

        found = examine(Check('G', 'a', look, limit_s=0.2, stuck='Kick it.'), Asked())
        assert verdicts(found) == ['ok', 'problem']
        assert 'no answer within 0.2 s. Kick it.' in told(found, 'problem')

    def test_silence_is_a_problem(self) -> None:
        assert verdicts(examine(Check('G', 'a', lambda asked: []), Asked())) == ['problem']

    def test_no_person_is_named(self) -> None:
        given = {'a': ['/home/anna/x and /home/annabel', '/scratch/anna/y'], 'b': 'anna', 'c': 2}
        hidden = {'a': ['~/x and /home/annabel', '/scratch/~/y'], 'b': 'anna', 'c': 2}
        found = Finding(Verdict.OK, 'In /home/anna.', '/run/user/anna:', given)
        assert discreet(found, home='/home/anna', user='anna') == replace(
            found, what='In ~.', fix='/run/user/~:', values=hidden
        )
        assert discreet(found, home='/', user='data') == discreet(found, home='', user='') == found
        assert discreet(found, home='/home', user='home').what == 'In /home/anna.'  # no person


class TestProbe:
    """Questions to other processes."""

    def test_an_answer(self) -> None:
        assert ask('workers', limit_s=60) == {'sum': 3}

    def test_a_missing_bundle_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match='no model bundle'):
            ask('bundle', str(tmp_path), limit_s=60)

    @pytest.mark.parametrize(
        ('code', 'said'),
        [
            ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'was ended by SIGSEGV'),
            ('raise ValueError("odd")', 'ended with code 1: ValueError: odd'),
            ('import time; time.sleep(60)', 'took more than 2 s'),
            ('print("no json")', 'ended with code 0: it said nothing'),
        ],
    )
    def test_no_answer(self, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
        run = subprocess.run

        def other(command: list[str], **options: Any) -> Any:
            return run([sys.executable, '-c', code], **options)

        monkeypatch.setattr(subprocess, 'run', other)
        with pytest.raises(Unanswered, match=said):
            ask('workers', limit_s=2)

    def test_libraries_that_do_not_fit_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, 'LIBRARIES', ('json', 'no_such_library'))
        assert list(probe.QUESTIONS['libraries']()['broken']) == ['no_such_library']

    def test_cpu_multiplies(self) -> None:
        assert probe._multiply('cpu') == ''
        assert probe._multiply('meta')  # a device that has no numbers


class TestSoftware:
    """Python, libraries, ANTs, programs."""

    def test_here_all_is_well(self) -> None:
        for look in (software.versions, software.python, software.packages):
            assert verdicts(look(Asked())) == ['ok'], look.__name__

    def test_old_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software.platform, 'python_version', lambda: '3.9.1')
        assert 'Python 3.9.1 is not supported' in told(software.python(Asked()), 'problem')

    def test_old_and_missing_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            software.metadata, 'requires', lambda name: ['numpy>=999', 'nobodys-library>=1', 'h5py>=9; extra == "keras"']
        )  # fmt: skip
        found = list(software.packages(Asked()))
        assert verdicts(found) == ['problem', 'problem']
        assert '>=999 is needed' in found[0].what
        assert "'numpy>=999'" in found[0].fix
        assert 'nobodys-library is not installed' in found[1].what

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> None:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(software.metadata, 'requires', absent)
        monkeypatch.setattr(software.metadata, 'metadata', absent)
        assert verdicts(software.packages(Asked())) == verdicts(software.python(Asked())) == ['warning']

    def test_imports(self, answers: Callable[..., None]) -> None:
        answers(libraries={'broken': {}})
        assert verdicts(software.libraries(Asked())) == ['ok']
        answers(libraries={'broken': {'numpy': 'ImportError: x'}})
        assert 'numpy cannot be imported (ImportError: x)' in told(software.libraries(Asked()), 'problem')
        answers(libraries=Unanswered('was ended by SIGILL'))
        assert 'SIGILL' in told(software.libraries(Asked()), 'problem')

    def test_ants(self, answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, 'which', lambda name: None)
        answers(ants={'version': 'antspyx 0.6.3'})
        assert 'antspyx 0.6.3 does' in told(software.ants(Asked()), 'ok')
        monkeypatch.setattr(shutil, 'which', lambda name: '/bin/x' if name == 'antsRegistration' else None)
        assert 'N4BiasFieldCorrection' in told(software.ants(Asked()), 'warning')
        monkeypatch.setattr(shutil, 'which', lambda name: '/bin/x')
        answers(ants={'version': 'ANTs (unknown version)'})
        assert 'does not tell its version' in told(software.ants(Asked()), 'warning')
        answers(ants=Unanswered('ended with code 1'))
        assert 'ended with code 1' in told(software.ants(Asked()), 'problem')

    @pytest.mark.parametrize(
        ('script', 'verdict'),
        [('echo bids-validator 3.0.2', 'ok'), ('echo broken >&2; exit 1', 'warning'), (None, 'warning')],
    )
    def test_validator(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, verdict: str
    ) -> None:
        program = tmp_path / 'validator'
        program.write_text(f'#!/bin/sh\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setattr(validation, 'find_validator', lambda: str(program) if script else None)
        (found,) = software.validator(Asked())
        assert found.verdict == verdict
        assert ('3.0.2' in found.what) == (verdict == 'ok')
        assert bool(found.fix) == (verdict != 'ok')


class TestMachine:
    """Cores, memory, limits."""

    def test_cores(self) -> None:
        assert verdicts(machine.cores(Asked(cores=2))) == ['ok']

    @pytest.mark.parametrize(
        ('usable', 'free', 'verdict'),
        [
            (16, 12, 'ok'),
            (1.8, 12, 'warning'),
            (16, 1.5, 'warning'),
            (0.5, 12, 'problem'),
            (16, 0.3, 'problem'),
        ],
    )
    def test_memory(
        self,
        answers: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        usable: float,
        free: float,
        verdict: str,
    ) -> None:
        answers(harmonizer={'memory_gb': 1.5})
        monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=free * 1e9))
        (found,) = machine.memory(Asked(memory_gb=usable, cores=4))
        assert found.verdict == verdict
        assert found.values['needed_gb'] == 2.5

    def test_a_large_method_needs_more_memory(self, answers: Callable[..., None]) -> None:
        answers(harmonizer={'memory_gb': 9.0})
        assert machine.needed_memory_gb(Asked()) == 9.0
        answers(harmonizer=Unanswered('crashed'))
        assert machine.needed_memory_gb(Asked()) == 2.5

    @pytest.mark.parametrize(
        ('limit', 'verdict'), [(1024, 'ok'), (64, 'warning'), (32, 'problem'), (resource.RLIM_INFINITY, 'ok')]
    )
    def test_open_files(self, monkeypatch: pytest.MonkeyPatch, limit: int, verdict: str) -> None:
        monkeypatch.setattr(resource, 'getrlimit', lambda what: (limit, limit))
        assert verdicts(machine.open_files(Asked(cores=8))) == [verdict]

    @pytest.mark.parametrize(('free', 'verdict'), [(8.0, 'ok'), (0.01, 'warning')])
    def test_shared_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, verdict: str
    ) -> None:
        monkeypatch.setattr(shutil, 'disk_usage', lambda place: SimpleNamespace(free=free * 1e9))
        assert verdicts(machine.shared_memory(Asked(), tmp_path)) == [verdict]
        assert verdicts(machine.shared_memory(Asked(), tmp_path / 'none')) == ['ok']

    def test_shared_memory_that_is_read_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, 'access', lambda path, mode: False)
        assert verdicts(machine.shared_memory(Asked(), tmp_path)) == ['warning']

    def test_processes(self, answers: Callable[..., None]) -> None:
        answers(workers={'sum': 3})
        assert verdicts(machine.processes(Asked())) == ['ok']
        answers(workers=Unanswered('ended with code 1: OSError: no semaphores'))
        assert 'no semaphores' in told(machine.processes(Asked()), 'problem')


CARD = {'device': 'cuda:0', 'name': 'H', 'memory_gb': 80.0, 'free_gb': 70.0, 'error': ''}


def seen(**more: Any) -> dict[str, Any]:
    """Return what PyTorch sees of a machine without a GPU."""
    return {
        'version': '2.6',
        'cuda': None,
        'hip': None,
        'told': [],
        'cpu': '',
        'cards': [],
        'mps': None,
        **more,
    }


class TestDevices:
    """What PyTorch sees."""

    @pytest.mark.parametrize(
        ('what', 'asked', 'driver', 'visible', 'verdict', 'said'),
        [
            (seen(), 'auto', False, None, 'ok', 'There is no GPU'),
            (seen(), 'cuda', False, None, 'problem', 'no driver of NVIDIA'),
            (seen(), 'auto', True, None, 'warning', 'made for the CPU only'),
            (seen(), 'cuda:0', True, None, 'problem', 'made for the CPU only'),
            (seen(cuda='13.0', told=['The NVIDIA driver on your system is too old']), 'auto', True, None, 'warning', 'is too old'),
            (seen(cuda='13.0'), 'cuda', True, None, 'problem', 'finds no card'),
            (seen(cuda='13.0'), 'auto', True, '', 'warning', 'hides every card'),
            (seen(cuda='13.0'), 'auto', True, '-1', 'warning', 'hides every card'),
            (seen(cuda='13.0'), 'auto', True, '0', 'warning', 'finds no card'),
            (seen(cuda='13.0', cards=[CARD]), 'auto', True, None, 'ok', 'cuda:0 (H, 80 GB) computes'),
            (seen(cuda='13.0', cards=[{**CARD, 'free_gb': 0.5}]), 'auto', True, None, 'warning', '0.5 GB of memory left'),
            (seen(cuda='13.0', cards=[{**CARD, 'error': 'no kernel image'}]), 'auto', True, None, 'problem', 'no kernel image'),
            (seen(cuda='13.0', cards=[{**CARD, 'error': 'no kernel image'}]), 'cpu', True, None, 'warning', 'no kernel image'),
            (seen(cuda='13.0', cards=[CARD]), 'cuda:3', True, None, 'problem', 'There is no cuda:3'),
            (seen(cpu='2 x 2 summed up to 5'), 'cpu', False, None, 'problem', 'computes wrongly'),
            (seen(mps=''), 'mps', False, None, 'ok', 'Apple GPU computes'),
            (seen(mps='odd'), 'auto', False, None, 'warning', 'odd'),
            (seen(), 'mps', False, None, 'problem', 'no Apple GPU'),
        ],
    )  # fmt: skip
    def test_verdicts(
        self, what: dict[str, Any], asked: str, driver: bool, visible: str | None, verdict: str, said: str
    ) -> None:
        found = list(machine.judge_devices(what, asked, driver=driver, visible=visible))
        (chosen,) = [item for item in found if said in item.what]
        assert chosen.verdict == verdict
        assert bool(chosen.fix) == (verdict != 'ok')
        worse = {'ok': set(), 'warning': {'warning'}, 'problem': {'problem'}}[verdict]
        assert {item.verdict for item in found} - {'ok'} == worse

    def test_pytorch_that_crashes(self, answers: Callable[..., None]) -> None:
        answers(torch=Unanswered('was ended by SIGILL'))
        assert 'SIGILL' in told(machine.devices(Asked()), 'problem')

    def test_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(execution, 'lock_folder', lambda: tmp_path)
        assert verdicts(machine.gpu_locks(Asked())) == ['ok']
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr(execution, 'lock_folder', lambda: Path('/proc'))
        assert verdicts(machine.gpu_locks(Asked())) == ['warning']

    def test_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, 'which', lambda name: None)
        monkeypatch.setattr(machine, 'DRIVER', (tmp_path / 'version',))
        assert not machine.has_driver()
        (tmp_path / 'version').touch()
        assert machine.has_driver()


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a bundle; the name says where."""
    from bidsharm.harmonizers import bundle

    def make(name: str) -> Path:
        bundle.save(Robust(), tmp_path / name)
        return tmp_path / name

    return make


class TestModels:
    """Weights, methods and templates."""

    def test_harmonizer(self, answers: Callable[..., None]) -> None:
        answers(harmonizer={'needs': []})
        assert verdicts(models.harmonizer(Asked())) == ['ok']
        answers(harmonizer={'needs': ['weights']})
        assert 'needs a model' in told(models.harmonizer(Asked(harmonizer='iguane')), 'problem')
        assert verdicts(models.harmonizer(Asked(harmonizer='iguane', model=Path('m')))) == ['ok']
        answers(harmonizer=Unanswered('crashed'))
        assert verdicts(models.harmonizer(Asked())) == ['problem']

    def test_a_method_that_nobody_has(self) -> None:
        check = Check('G', 'n', models.harmonizer, limit_s=60)
        assert 'Did you mean nyul?' in told(examine(check, Asked(harmonizer='niul')), 'problem')

    def test_builtin(self, answers: Callable[..., None]) -> None:
        answers(harmonizers={'count': 3, 'broken': {}})
        assert verdicts(models.builtin(Asked())) == ['ok']
        answers(harmonizers={'count': 3, 'broken': {'nyul': 'It is odd.'}})
        assert 'nyul' in told(models.builtin(Asked()), 'problem')
        answers(harmonizers=Unanswered('crashed'))
        assert verdicts(models.builtin(Asked())) == ['problem']

    def test_weights_that_come_along(self, tmp_path: Path) -> None:
        assert verdicts(models.weights(Asked())) == ['ok', 'ok', 'ok']  # T1w, T2w and FLAIR
        assert verdicts(models.weights(Asked(), tmp_path)) == ['problem']

    def test_damaged_weights(self, tmp_path: Path, bundle_of: Callable[[str], Path]) -> None:
        place = bundle_of('all/method/T1w')
        (place / 'model.safetensors').write_bytes(b'x')
        found = told(models.weights(Asked(), tmp_path / 'all'), 'problem')
        assert found.startswith('method/T1w: The bundle is damaged')
        assert found.endswith('Install bidsharm again.')

    def test_brain_extraction(self, answers: Callable[..., None]) -> None:
        answers(**{'brain-extraction': {}})
        assert verdicts(models.brain_extraction(Asked())) == ['ok']
        answers(**{'brain-extraction': Unanswered('ended with code 1: no such file')})
        assert '--brain-extraction ants' in told(models.brain_extraction(Asked()), 'problem')

    def test_given_bundles(self, tmp_path: Path, bundle_of: Callable[[str], Path]) -> None:
        assert verdicts(models.given_bundles(Asked())) == ['ok']
        place = bundle_of('weights/good')
        found = list(models.given_bundles(Asked(harmonizer='robust', model=place, weights_dir=place.parent)))
        assert verdicts(found) == ['ok', 'ok']
        by_name = Asked(harmonizer='nyul', model=Path('good'), weights_dir=place.parent)
        assert 'made by "robust"' in next(iter(models.given_bundles(by_name))).what

    def test_given_bundles_that_are_none(self, tmp_path: Path) -> None:
        assert 'no model' in told(models.given_bundles(Asked(model=tmp_path / 'none')), 'problem')
        assert 'no folder' in told(models.given_bundles(Asked(weights_dir=tmp_path / 'none')), 'problem')
        assert 'no bundle' in told(models.given_bundles(Asked(weights_dir=tmp_path)), 'warning')

    def test_many_bundles(self, answers: Callable[..., None], tmp_path: Path) -> None:
        answers(bundle={'method': 'robust', 'digest': '0' * 64})
        for number in range(models.MOST_BUNDLES + 2):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / 'card.json').touch()
        *_, last = models.given_bundles(Asked(weights_dir=tmp_path))
        assert last.what.startswith('2 more bundles')

    def test_plugins(self, answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        assert verdicts(models.plugins(Asked())) == ['ok']
        points = [metadata.EntryPoint('theirs', 'theirs:Method', registry.GROUP),
                  metadata.EntryPoint('nyul', 'theirs:Nyul', registry.GROUP)]  # fmt: skip
        for module in (registry, models):
            monkeypatch.setattr(module, 'entry_points', lambda group: points)
        answers(**{'method theirs': {'needs': []}})
        found = list(models.plugins(Asked()))
        assert verdicts(found) == ['warning', 'ok']
        assert '"nyul" is ignored' in found[0].what
        answers(**{'method theirs': Unanswered('was ended by SIGSEGV')})
        assert 'SIGSEGV' in told(models.plugins(Asked()), 'problem')
        answers(**{'method theirs': ScanError('It has no card.', fix='Repair it.')})
        assert told(models.plugins(Asked()), 'problem') == 'It has no card. Repair it.'

    def test_bundled_template(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from bidsharm.imaging import templates

        assert verdicts(models.bundled_template(Asked())) == ['ok']
        monkeypatch.setattr(
            templates, 'bundled_files', lambda: {name: tmp_path / name for name in ('T1w', 'GM', 'WM')}
        )
        assert 'T1w, GM, WM is missing' in told(models.bundled_template(Asked()), 'problem')
        for name in ('T1w', 'GM', 'WM'):
            (tmp_path / name).write_bytes(b'cut off')
        assert 'cannot be read' in told(models.bundled_template(Asked()), 'problem')

    def test_templates(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path))
        asked = Asked(output_spaces=('native', 'MNI152NLin2009aSym:res-2', 'MNI152NLin2009cAsym:res-2'))
        found = list(models.given_templates(asked))
        assert verdicts(found) == ['ok', 'ok', 'warning']
        assert 'Fetch it once' in found[2].fix
        monkeypatch.setattr(models, '_can_write', lambda folder: False)
        assert verdicts(models.given_templates(asked)) == ['ok', 'ok', 'problem']

    def test_templates_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ('TEMPLATEFLOW_HOME', 'XDG_CACHE_HOME'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv('HOME', '/tmp/lent')  # as a run would get it
        asked = Asked(home=None, output_spaces=('MNI152NLin2009cAsym:res-2',))
        found = list(models.given_templates(asked))
        assert verdicts(found) == ['ok', 'problem']
        assert 'go away with it' in found[0].what
        assert (
            'TemplateFlow looks in'
            in next(iter(models.given_templates(replace(asked, home='/tmp/lent')))).what
        )

    def test_template_that_was_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path))
        folder = tmp_path / 'tpl-MNI152NLin2009cAsym'
        folder.mkdir()
        (folder / 'tpl-MNI152NLin2009cAsym_res-02_desc-brain_T1w.nii.gz').write_bytes(b'0123456789')
        found = told(models.given_templates(Asked(output_spaces=('MNI152NLin2009cAsym:res-2',))), 'problem')
        assert 'cannot be read' in found
        assert found.endswith('Delete it and fetch it again.')


def facts(**more: Any) -> folders.Facts:
    """Return what is known of a good folder."""
    return folders.Facts(Path('/f'), Path('/f'), **{'free_gb': 100.0, **more})


class TestFolders:
    """Folders that a run writes to."""

    def test_a_good_folder(self, tmp_path: Path) -> None:
        found = folders.look_at(tmp_path / 'new' / 'out')
        assert (found.folder, found.place, found.error) == (tmp_path / 'new' / 'out', tmp_path, '')
        assert found.locks
        assert found.renames
        assert found.links
        assert not found.ignores_case
        assert abs(found.skew_s) < 60
        assert not list(tmp_path.iterdir())

    def test_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / 'file').touch()
        assert folders.look_at(tmp_path / 'file').error == 'it is no folder'
        assert folders.look_at(Path('/proc/none')).error

    def test_what_is_tried_can_fail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError('not here')

        monkeypatch.setattr(os, 'replace', refuse)
        monkeypatch.setattr(Path, 'symlink_to', refuse)
        monkeypatch.setattr('filelock.FileLock.acquire', refuse)
        now = time.time()
        monkeypatch.setattr(time, 'time', lambda: now + 3600)
        found = folders.look_at(tmp_path)
        assert not found.renames
        assert not found.links
        assert not found.locks
        assert found.skew_s == pytest.approx(3600, abs=60)

    def test_locks_that_keep_nobody_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr('filelock.FileLock.acquire', lambda lock, **options: lock)
        assert not folders._can_lock(tmp_path)

    @pytest.mark.parametrize(
        ('known', 'verdict', 'said'),
        [
            ({}, 'ok', '100.0 GB left'),
            ({'in_memory': True, 'ignores_case': True}, 'ok', 'in memory, upper and lower case are the same'),
            ({'error': 'Read-only file system'}, 'problem', 'Read-only file system'),
            ({'free_gb': 0.01}, 'problem', '0.01 GB left'),
            ({'free_gb': 2.0}, 'warning', 'takes up to 5 GB'),
            ({'locks': False}, 'warning', 'cannot be locked'),
            ({'renames': False}, 'problem', 'take the place of another'),
            ({'links': False}, 'warning', 'no links'),
            ({'skew_s': 90.0}, 'warning', '90 s behind'),
            ({'skew_s': -90.0}, 'warning', '90 s ahead of'),
        ],
    )
    def test_verdicts(self, known: dict[str, Any], verdict: str, said: str) -> None:
        found = list(folders.judge('folder', '--here', facts(**known), needed_gb=0.5, most_gb=5.0))
        (chosen,) = [item for item in found if said in item.what]
        assert chosen.verdict == verdict
        assert {item.verdict for item in found} <= {'ok', verdict}

    @pytest.mark.parametrize(
        ('known', 'room', 'verdict', 'said'),
        [
            ({}, 0.0, 'ok', 'can be written'),
            ({'free_gb': 0.06}, 100.0, 'warning', 'go to the output folder'),
            ({'free_gb': 0.06}, 0.0, 'problem', 'one scan takes 0.5 GB'),
            ({'in_memory': True}, 0.0, 'warning', 'would use 1.0 GB'),
            ({'error': 'no'}, 100.0, 'problem', 'cannot be written'),
        ],
    )
    def test_temporary_files(
        self, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], room: float, verdict: str, said: str
    ) -> None:
        monkeypatch.setattr(folders, 'look_at', lambda folder: facts(**known))
        monkeypatch.setattr(folders, '_room', lambda folder: room)
        found = list(folders.temporary(Asked(cores=2, memory_gb=4.0)))
        assert said in ' '.join(item.what for item in found)
        assert {item.verdict for item in found} <= {'ok', verdict}
        assert verdict in verdicts(found)

    def test_no_temporary_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent() -> str:
            raise FileNotFoundError('no usable temporary directory')

        monkeypatch.setattr(tempfile, 'gettempdir', absent)
        assert '--tmpfs /tmp' in told(folders.temporary(Asked()), 'problem')

    def test_working_and_output_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert verdicts(folders.working(Asked())) == verdicts(folders.output(Asked())) == ['ok']
        assert verdicts(folders.output(Asked(output_dir=tmp_path))) == ['ok']
        assert verdicts(folders.temporary(Asked(work_dir=tmp_path))) == ['ok']
        monkeypatch.setattr(folders, 'look_at', lambda folder: facts(in_memory=True))
        assert 'lost' in told(folders.output(Asked(output_dir=tmp_path)), 'warning')
        found = list(folders.working(Asked(work_dir=tmp_path / 'a[b]')))
        assert verdicts(found) == ['ok', 'warning', 'warning']
        assert 'square brackets' in found[2].what

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (unset,) = folders.home(Asked(home=None))
        (there,) = folders.home(Asked(home=str(tmp_path)))
        (closed,) = folders.home(Asked(home='/proc/none'))
        assert [unset.verdict, there.verdict, closed.verdict] == ['ok'] * 3
        assert 'not set' in unset.what
        assert 'cannot be written' in closed.what
        monkeypatch.setattr(shutil, 'disk_usage', lambda place: SimpleNamespace(free=0))
        assert 'is full' in told(folders.home(Asked(home=str(tmp_path))), 'warning')


class TestData:
    """Data set and container."""

    @pytest.mark.parametrize(
        ('environment', 'files', 'kind'),
        [
            ({}, [], ''),
            ({'APPTAINER_CONTAINER': '/x.sif', 'BIDSHARM_CONTAINER': 'docker:x'}, [], 'apptainer'),
            ({'SINGULARITY_CONTAINER': '/x.sif'}, [], 'apptainer'),
            ({'BIDSHARM_CONTAINER': 'docker:bidsharm:1'}, [], 'docker'),
            ({}, ['.dockerenv'], 'docker'),
            ({}, ['run/.containerenv'], 'podman'),
        ],
    )
    def test_containers_are_known(
        self, tmp_path: Path, environment: dict[str, str], files: list[str], kind: str
    ) -> None:
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert data.container(tmp_path, environment) == kind

    @pytest.mark.parametrize(
        ('kind', 'asked', 'mounted', 'verdict', 'said'),
        [
            ('', Asked(), set(), 'ok', 'no container'),
            (
                'docker',
                Asked(),
                set(),
                'warning',
                '-v /path/of/the/data:/data:ro -v /path/of/the/results:/out',
            ),
            ('apptainer', Asked(), {'/out'}, 'warning', 'Start it with -B /path/of/the/data:/data:ro, then'),
            (
                'docker',
                Asked(Path('/d'), Path('/o')),
                {'/d'},
                'warning',
                'Start it with -v /path/of/the/results:/o.',
            ),
            ('docker', Asked(), {'/data', '/out'}, 'ok', 'with folders of the machine'),
        ],
    )
    def test_mounts(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        asked: Asked,
        mounted: set[str],
        verdict: str,
        said: str,
    ) -> None:
        monkeypatch.setattr(data, 'container', lambda: kind)
        monkeypatch.setattr(data, 'is_mounted', lambda path: str(path) in mounted)
        assert said in told(data.mounts(asked), verdict)

    def test_mounted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os.path, 'ismount', lambda place: str(place) in ('/', str(tmp_path)))
        assert data.is_mounted(tmp_path / 'a' / 'b')
        assert not data.is_mounted(Path('/data'))

    def test_data_set(self, tmp_path: Path, make_data_set: Callable[..., Path]) -> None:
        assert verdicts(data.data_set(Asked())) == ['ok']
        root = make_data_set(tmp_path / 'bids', {'01': 'A', '02': 'B'})
        assert '2 sub-* folders' in told(data.data_set(Asked(bids_dir=root)), 'ok')
        (root / 'dataset_description.json').write_text('{')
        assert 'not valid JSON' in told(data.data_set(Asked(bids_dir=root)), 'warning')
        (root / 'dataset_description.json').unlink()
        assert 'no dataset_description.json' in told(data.data_set(Asked(bids_dir=root)), 'warning')
        assert 'no sub-* folder' in told(data.data_set(Asked(bids_dir=root / 'sub-01')), 'problem')
        assert 'no folder' in told(data.data_set(Asked(bids_dir=root / 'none')), 'problem')

    def test_data_set_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(13, 'Permission denied')

        monkeypatch.setattr(Path, 'iterdir', refuse)
        assert 'Permission denied' in told(data.data_set(Asked(bids_dir=tmp_path)), 'problem')

    def test_files(
        self, tmp_path: Path, make_data_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = make_data_set(tmp_path / 'bids', {'01': 'A'}, ('T1w', 'T2w', 'FLAIR'))
        assert verdicts(data.files(Asked())) == verdicts(data.files(Asked(bids_dir=root))) == ['ok']
        anat = root / 'sub-01' / 'anat'
        (anat / 'sub-01_T1w.nii.gz').rename(tmp_path / 'elsewhere.nii.gz')
        (anat / 'sub-01_T1w.nii.gz').symlink_to(tmp_path / 'elsewhere.nii.gz')
        (anat / 'sub-01_PDw.nii.gz').symlink_to('nowhere')
        found = data.sample(root)
        assert vars(found) == {'files': 4, 'broken': 1, 'leaving': 1, 'unreadable': 0}
        monkeypatch.setattr(os, 'access', lambda path, mode: 'FLAIR' not in str(path))
        assert data.sample(root).unreadable == 1
        assert data.sample(root, most=2).files == 2
        assert data.sample(root, seconds=-1).files == 0

    def test_judged_files(self) -> None:
        sample = data.Sample(files=9, broken=1)
        assert 'datalad get' in told(data.judge_files(sample, inside=False), 'warning')
        assert 'mount what they point at' in told(data.judge_files(sample, inside=True), 'warning')
        assert 'may not be read' in told(
            data.judge_files(data.Sample(9, unreadable=2), inside=False), 'warning'
        )
        assert verdicts(data.judge_files(data.Sample(9, leaving=2), inside=False)) == ['ok', 'ok']
        assert verdicts(data.judge_files(data.Sample(), inside=False)) == ['warning']


class TestTrial:
    """The tiny run, judged by what it leaves behind."""

    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        for name in trial.EXPECTED.values():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text('x')
        (tmp_path / 'logs' / 'run').mkdir(parents=True)
        lines = (
            '... [Node] Finished "n4", elapsed time 1.5s.\n... [Node] Finished "n4", elapsed time 0.25s.\n'
        )
        (tmp_path / 'logs' / 'run' / 'nipype.log').write_text(lines)
        return tmp_path

    def test_all_there(self, results: Path) -> None:
        (found,) = trial.judge_run(trial.Ended(0, '', 12.0), 3.0, results)
        assert found.verdict is Verdict.OK
        assert found.values == {'simulated_s': 3.0, 'run_s': 12.0, 'steps_s': {'n4': 1.75}}

    @pytest.mark.parametrize('name', trial.EXPECTED)
    def test_something_missing(self, results: Path, name: str) -> None:
        (results / trial.EXPECTED[name]).write_text('')
        assert f'wrote no {name}' in told(trial.judge_run(trial.Ended(0, '', 1.0), 1.0, results), 'problem')

    def test_a_run_that_failed(self, results: Path) -> None:
        said = f'...\nNameError: x in {results.parent}/out\nbidsharm: an internal error; please report the lines above.\n'
        found = told(trial.judge_run(trial.Ended(70, said, 1.0), 1.0, results), 'problem')
        assert '(code 70: NameError: x in out)' in found

    def test_a_run_that_hangs(self, monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
        def hang(command: list[str], **options: Any) -> None:
            raise subprocess.TimeoutExpired(command, options['timeout'])

        monkeypatch.setattr(subprocess, 'run', hang)
        ended = trial.run('run', limit_s=5)
        assert 'took more than 5 s' in told(trial.judge_run(ended, 1.0, results), 'problem')

    @pytest.mark.parametrize(
        ('free', 'asked', 'place'),
        [
            ({'tmp': 10.0, 'out': 10.0}, True, 'tmp'),
            ({'tmp': 0.064, 'out': 10.0}, True, 'out'),
            ({'tmp': 0.064, 'out': 0.1}, True, None),
            ({'tmp': 0.064, 'out': 10.0}, False, None),
        ],
    )
    def test_it_goes_where_there_is_room(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        free: dict[str, float],
        asked: bool,
        place: str | None,
    ) -> None:
        for name in free:
            (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
        monkeypatch.setattr(scratch, 'free_gb', lambda folder: free[folder.name])
        made = []
        monkeypatch.setattr(
            trial,
            'run',
            lambda *arguments, limit_s: made.append(Path(arguments[1])) or trial.Ended(1, 'x', 1.0),
        )
        (found,) = trial.trial(Asked(output_dir=tmp_path / 'out' / 'new' if asked else None))
        assert [path.parents[1].name for path in made] == ([place] if place else [])
        assert found.verdict == ('problem' if place else 'warning')
        assert not list((tmp_path / 'out').iterdir())

    def test_a_head_that_cannot_be_simulated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trial, 'run', lambda *_, **__: trial.Ended(1, 'No space left on device', 1.0))
        assert 'No space left' in told(trial.trial(Asked()), 'problem')


def test_a_question_that_crashes_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that ends its process is a finding, whatever it is that asks."""
    run = subprocess.run

    def crash(command: list[str], **options: Any) -> Any:
        return run(
            [sys.executable, '-c', f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})'], **options
        )

    monkeypatch.setattr(subprocess, 'run', crash)
    checks = [check for group in (software, machine, models) for check in group.CHECKS]
    found = list(examine_all(checks, Asked()))
    crashed = [item.check for item in found if item.verdict == 'problem' and 'SIGKILL' in item.what]
    assert crashed == [
        'imports',
        'ANTs',
        'processes',
        'devices',
        'methods',
        'harmonizer',
        'built-in weights',
        'built-in weights',
        'built-in weights',
        'brain extraction',
    ]
    assert json.dumps([vars(item) for item in found])
