"""Graphs whose steps are jobs of a cluster: none is lost, none is waited for in vain, and each failure has its words."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bidsharm.workflows import slurm, slurm_queue
from bidsharm.workflows.clusters import (
    SUBMIT,
    UNWAITED,
    check_submission,
    devices,
    job_variables,
    open_plugin,
)
from bidsharm.workflows.engine import configure, load_plugin, of_graph, read_failures, run_graph
from bidsharm.workflows.slurm_queue import Job, Queue, job_template
from nipype import config
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import registry

FAKE = Path(__file__).with_name('fake_slurm.py')
PLUGINS = Path(__file__).parents[2] / 'descriptors' / 'plugins'


# A graph on a stand-in for SLURM.


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """Put the stand-in on the PATH and look often; return the folder that it keeps its jobs in."""
    root, tools = tmp_path / 'fake', tmp_path / 'bin'
    root.mkdir()
    tools.mkdir()
    for name in ('sbatch', 'squeue', 'scontrol', 'scancel'):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE_SLURM', str(root))
    monkeypatch.setenv('LOGNAME', 'x')
    monkeypatch.setenv('PYTHONPATH', os.environ.get('PYTHONPATH', ''))
    monkeypatch.delenv('LOGNAME')
    for module in (slurm, slurm_queue):
        monkeypatch.setattr(module, 'POLL_S', 0.2)
    monkeypatch.setattr(slurm_queue, 'GRACE_S', 5.0)
    return root


@pytest.fixture
def run(make_settings, tmp_path, cluster, clean_nipype):
    """Return a function that runs a graph with one of the plugins and returns what failed."""

    def run(make, plugin, on_node=None, **values):
        log_dir = tmp_path / f'logs{time.monotonic_ns()}'
        log_dir.mkdir()
        file = tmp_path / 'plugin.yml'
        file.write_text(f'plugin: {plugin}\nplugin_args: {{sbatch_args: "--mem=1G"}}\n')
        settings = make_settings(use_plugin=file, work_dir=tmp_path / 'work', **values)
        configure(settings, log_dir)
        config.set('execution', 'poll_sleep_duration', '0.2')
        seen = []
        workflow = make()  # it takes the configuration of its birth along
        on_node = on_node or (lambda node, status, **_: seen.append((node.fullname, status)))
        run_graph(workflow, settings, on_node=on_node)
        states = [item.read_text() for item in cluster.glob('*.state')]
        assert set(states) <= {'COMPLETED', 'FAILED', 'CANCELLED'}, 'nothing is left in the queue'
        return read_failures(log_dir), seen

    return run


def double(value):
    return 2 * value


def write(value, path):
    from pathlib import Path

    Path(path).write_text(str(value))
    return value


def fail(value):
    raise ValueError(f'no {value} today')


def die(value):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def cancelled(value):
    import os
    import subprocess

    subprocess.run(['scancel', os.environ['SLURM_JOB_ID']])


def chain(folder: Path, first, name: str) -> pe.Workflow:
    """Return a graph in which a second step writes what the first has made."""
    workflow = pe.Workflow(name=name, base_dir=str(folder / 'work'))
    one = pe.Node(niu.Function(function=first, output_names=['out']), name='one')
    one.inputs.value = 21
    two = pe.Node(
        niu.Function(function=write, input_names=['value', 'path'], output_names=['out']), name='two'
    )
    two.inputs.path = str(folder / f'{name}.txt')
    workflow.connect(one, 'out', two, 'value')
    return workflow


def side_by_side(folder: Path, **first) -> pe.Workflow:
    workflow = pe.Workflow(name='all_wf', base_dir=str(folder / 'work'))
    workflow.add_nodes([chain(folder, function, f'{name}_wf') for name, function in first.items()])
    return workflow


@pytest.mark.parametrize('plugin', ['SLURM', 'SLURMGraph'])
def test_every_end_of_a_job_is_noticed(plugin, run, tmp_path, cluster):
    started = time.monotonic()
    steps = {'good': double, 'bad': fail, 'killed': die, 'taken': cancelled}
    failures, seen = run(lambda: side_by_side(tmp_path, **steps), plugin)
    assert time.monotonic() - started < 60
    words = {failure.node.split('.')[1]: failure.what for failure in failures}
    assert set(words) == {'bad_wf', 'killed_wf', 'taken_wf'}
    assert words['bad_wf'] == 'ValueError: no 21 today'
    assert 'SIGKILL' in words['killed_wf']
    assert 'SLURM ended the job' in words['taken_wf']
    assert 'CANCELLED' in words['taken_wf']
    assert (tmp_path / 'good_wf.txt').read_text() == '42'
    assert [file.name for file in tmp_path.glob('*_wf.txt')] == ['good_wf.txt']
    assert {name for name, status in seen if status == 'end'} == {'all_wf.good_wf.one', 'all_wf.good_wf.two'}
    assert {name for name, status in seen if status == 'exception'} == {
        f'all_wf.{name}_wf.one' for name in ('bad', 'killed', 'taken')
    }
    calls = [json.loads(line) for line in (cluster / 'calls.jsonl').read_text().splitlines()]
    assert all('--mem=1G' in call for call in calls)
    assert len(calls) == (8 if plugin == 'SLURMGraph' else 5)


@pytest.mark.parametrize('plugin', ['SLURM', 'SLURMGraph'])
def test_result_of_an_earlier_run_does_not_stand_in_for_a_killed_job(plugin, run, tmp_path):
    assert run(lambda: chain(tmp_path, double, 'once_wf'), plugin)[0] == []
    (tmp_path / 'once_wf.txt').unlink()
    (failure,), _ = run(lambda: chain(tmp_path, die, 'once_wf'), plugin)
    assert failure.node == 'once_wf.one'
    assert not (tmp_path / 'once_wf.txt').exists()


def sleep(value):
    import time

    time.sleep(120)


@pytest.mark.parametrize('plugin', ['SLURM', 'SLURMGraph'])
def test_whoever_interrupts_leaves_no_job_behind(plugin, run, tmp_path, cluster):
    started = []

    def interrupt(node, status, **_):
        started.append(node.fullname)
        if len(started) == 2:
            raise KeyboardInterrupt

    steps = {'one': sleep, 'other': sleep}
    with pytest.raises(KeyboardInterrupt):
        run(lambda: side_by_side(tmp_path, **steps), plugin, on_node=interrupt)
    states = [item.read_text() for item in cluster.glob('*.state')]
    assert states
    assert set(states) == {'CANCELLED'}


@pytest.mark.parametrize('plugin', ['SLURM', 'SLURMGraph'])
def test_job_that_slurm_does_not_take_ends_the_run(plugin, run, tmp_path, cluster):
    (cluster / 'refuse').touch()
    with pytest.raises(ConfigurationError, match='invalid partition specified: moon') as caught:
        run(lambda: chain(tmp_path, double, 'once_wf'), plugin)
    assert 'plugin file' in caught.value.fix


@pytest.mark.parametrize('plugin', ['SLURM', 'SLURMGraph'])
def test_what_a_step_asks_for_comes_to_sbatch(plugin, run, tmp_path, cluster):
    """As the harmonize node asks for a GPU."""

    def make():
        workflow = chain(tmp_path, double, 'once_wf')
        workflow.get_node('two').plugin_args = {'sbatch_args': '--gres=gpu:1', 'overwrite': True}
        return workflow

    assert run(make, plugin)[0] == []
    one, two = (json.loads(line) for line in (cluster / 'calls.jsonl').read_text().splitlines())
    assert '--mem=1G' in one
    assert '--gres=gpu:1' not in one
    assert '--gres=gpu:1' in two
    assert '--mem=1G' not in two


def test_package_that_jobs_do_not_find_is_named(run, tmp_path, monkeypatch):
    """The cause is what the job printed, whatever Nipype's reporter makes of it."""
    monkeypatch.setattr('bidsharm.workflows.clusters.job_variables', lambda: {'LOGNAME': 'x'})
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'faraway.py').write_text('def double(value):\n    return 2 * value\n')
    monkeypatch.syspath_prepend(str(tmp_path / 'elsewhere'))
    from nipype.interfaces.base import BaseInterface, BaseInterfaceInputSpec, TraitedSpec

    kind = type('Kind', (BaseInterface,), {
        '__module__': 'faraway', 'input_spec': BaseInterfaceInputSpec, 'output_spec': TraitedSpec,
    })  # fmt: skip
    import faraway

    faraway.Kind = kind

    def make():
        workflow = pe.Workflow(name='far_wf', base_dir=str(tmp_path / 'work'))
        workflow.add_nodes([pe.Node(kind(), name='far')])
        return workflow

    for plugin in ('SLURM', 'SLURMGraph'):
        (failure,), _ = run(make, plugin)
        assert "No module named 'faraway'" in failure.what
    sys.modules.pop('faraway')


def test_error_of_the_graph_itself_is_kept(make_settings, tmp_path, clean_nipype, monkeypatch):
    (tmp_path / 'logs').mkdir()
    configure(make_settings(), tmp_path / 'logs')
    workflow = chain(tmp_path, double, 'once_wf')

    def broken(plugin):
        raise OSError('no space left on device')

    monkeypatch.setattr(workflow, 'run', broken, raising=False)
    run_graph(workflow, make_settings())
    (failure,) = read_failures(tmp_path / 'logs')
    assert of_graph(failure)
    assert failure.what == 'OSError: no space left on device'


# What SLURM says of a job.


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return answers that can be set for SLURM's programs, and a queue and a job that rest on them."""
    answers: dict[str, tuple[int, str]] = {
        'squeue': (0, ''),
        'scontrol': (1, ''),
        'sacct': (1, ''),
        'scancel': (0, ''),
    }
    calls: list[tuple[str, ...]] = []

    def ask(*command):
        calls.append(command)
        return answers[command[0]]

    monkeypatch.setattr(slurm_queue, 'ask', ask)
    monkeypatch.setattr(slurm_queue, 'POLL_S', 0.0)
    script = tmp_path / 'pyscript_x.py'
    job = Job(7, SimpleNamespace(name='harmonize'), script, time.monotonic())
    return SimpleNamespace(answers=answers, calls=calls, queue=Queue(tmp_path), job=job, folder=tmp_path)


@pytest.mark.parametrize('state', ['PENDING', 'RUNNING', 'COMPLETING', 'SUSPENDED'])
def test_job_in_the_queue_is_waited_for(state, asked):
    asked.answers['squeue'] = (0, f'7|{state}|None\n')
    (asked.folder / '7.exit').write_text('0')  # it still cleans up
    assert asked.queue.end_of(asked.job) is None


@pytest.mark.parametrize('code', [0, 1, 137])
def test_job_that_left_its_exit_code(code, asked):
    (asked.folder / '7.exit').write_text(f'{code}\n')
    assert asked.queue.end_of(asked.job) == code
    assert bool(asked.job.failure(code)) is (code != 0)


@pytest.mark.parametrize(
    ('state', 'advice'),
    [('OUT_OF_MEMORY', 'memory'), ('TIMEOUT', 'time'), ('CANCELLED', 'Run'), ('NODE_FAIL', 'Run')],
)
@pytest.mark.parametrize('source', ['scontrol', 'sacct'])
def test_job_that_slurm_ended(state, advice, source, asked):
    asked.answers[source] = (
        0,
        f'JobId=7 JobState={state} Reason=None' if source == 'scontrol' else f'{state} by 0\n',
    )
    asked.job.log.write_text('loading\nslurmstepd: error: it is over\n')
    end = asked.queue.end_of(asked.job)
    assert f'harmonize: SLURM ended the job 7 of this step: {state}.' in end
    assert 'Its last words: slurmstepd: error: it is over' in end
    assert advice in end.rsplit('over', 1)[1]


@pytest.mark.parametrize('state', ['', 'COMPLETED', 'FAILED'])
def test_what_a_file_system_may_still_hide_is_waited_for(state, asked, monkeypatch):
    if state:
        asked.answers['scontrol'] = (0, f'JobState={state}')
    assert asked.queue.end_of(asked.job) is None
    monkeypatch.setattr(slurm_queue, 'GRACE_S', 0.0)
    end = asked.queue.end_of(asked.job)
    assert ('without its exit code' if state else 'vanished') in end


@pytest.mark.parametrize(
    'reason', ['DependencyNeverSatisfied', '(launch failed requeued held)', 'BadConstraints']
)
def test_job_that_can_never_start_is_cancelled(reason, asked):
    asked.answers['squeue'] = (0, f'7|PENDING|{reason}\n')
    assert 'can never start' in asked.queue.end_of(asked.job)
    assert ('scancel', '7') in asked.calls


def test_queue_in_which_nothing_happens_is_not_waited_for_forever(asked, monkeypatch):
    asked.answers['squeue'] = (0, '7|PENDING|Priority\n')
    assert asked.queue.end_of(asked.job) is None
    monkeypatch.setattr(slurm_queue, 'QUEUE_LIMIT_S', 0.0)
    assert 'nothing happened in the queue' in asked.queue.end_of(asked.job)
    assert ('scancel', '7') in asked.calls


def test_silence_of_slurm_is_borne_for_a_while(asked, monkeypatch):
    asked.answers['squeue'] = (0, '7|RUNNING|None\n')
    assert asked.queue.end_of(asked.job) is None
    asked.answers['squeue'] = (1, 'Unable to contact slurm controller')
    assert asked.queue.end_of(asked.job) is None
    monkeypatch.setattr(slurm_queue, 'SILENCE_S', 0.0)
    with pytest.raises(ConfigurationError, match='Unable to contact slurm controller'):
        asked.queue.end_of(asked.job)


def test_one_look_serves_all_jobs(asked, monkeypatch):
    monkeypatch.setattr(slurm_queue, 'POLL_S', 60.0)
    asked.answers['squeue'] = (0, '7|RUNNING|None\n')
    for _ in range(20):
        asked.queue.end_of(asked.job)
    assert [call[0] for call in asked.calls] == ['squeue']


def test_look_from_before_a_job_was_handed_over_says_nothing_of_it(asked, monkeypatch):
    monkeypatch.setattr(slurm_queue, 'POLL_S', 60.0)
    monkeypatch.setattr(slurm_queue, 'GRACE_S', 0.0)
    asked.queue.refresh()
    late = Job(8, SimpleNamespace(name='late'), asked.job.script, time.monotonic())
    assert asked.queue.end_of(late) is None


def test_options_of_the_user_do_not_hide_jobs(monkeypatch):
    monkeypatch.setenv('SQUEUE_STATES', 'RUNNING')
    assert 'SQUEUE_STATES' not in slurm_queue.ask('env')[1]


# The script of a job.


@pytest.mark.parametrize('given', [None, '#!/bin/bash\n#SBATCH --qos=low\nexport MODULE=loaded', 'file'])
def test_template_keeps_exit_code_and_environment(given, tmp_path, monkeypatch):
    import subprocess

    folder = tmp_path / 'with space'
    folder.mkdir()
    if given == 'file':
        (tmp_path / 'template.sh').write_text('#!/bin/bash\nexport MODULE=loaded\n')
        given = str(tmp_path / 'template.sh')
    template = job_template(given, folder, {'PYTHONPATH': "/some where/it's"})
    script = tmp_path / 'job.sh'
    script.write_text(f'{template}\n/bin/bash -c \'echo "$MODULE $PYTHONPATH"; exit 3\'\n')
    done = subprocess.run(['bash', str(script)], env={'SLURM_JOB_ID': '5', 'PATH': os.environ['PATH']},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 3
    assert (folder / '5.exit').read_text() == '3\n'
    assert done.stdout.strip() == ('loaded ' if given else '') + "/some where/it's"


def test_jobs_know_user_and_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('LOGNAME', 'ada')
    variables = job_variables()
    assert variables['LOGNAME'] == 'ada'
    assert str(tmp_path) in variables['PYTHONPATH'].split(os.pathsep)
    assert not [
        entry for entry in variables['PYTHONPATH'].split(os.pathsep) if entry.startswith(sys.prefix + os.sep)
    ]
    monkeypatch.delenv('LOGNAME')
    monkeypatch.setattr('getpass.getuser', lambda: (_ for _ in ()).throw(KeyError('uid not found')))
    assert job_variables()['LOGNAME'] == f'uid{os.getuid()}'


# Before the run.


def test_where_nothing_can_be_submitted(make_settings, tmp_path, monkeypatch):
    settings = make_settings(work_dir=tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    for plugin, program in SUBMIT.items():
        with pytest.raises(ConfigurationError, match=program):
            check_submission(plugin, settings)
    check_submission('MultiProc', make_settings())


def test_working_folder_of_jobs(make_settings, tmp_path, cluster):
    with pytest.raises(UsageError, match='needs a working folder'):
        check_submission('SLURM', make_settings())
    with pytest.raises(UsageError, match='does not hold together'):
        check_submission('SLURM', make_settings(work_dir=tmp_path / 'my work'))
    check_submission('SLURM', make_settings(work_dir=tmp_path))


@pytest.mark.parametrize('plugin', UNWAITED)
def test_plugins_that_do_not_wait_are_refused(plugin, tmp_path):
    file = tmp_path / 'plugin.yml'
    file.write_text(f'plugin: {plugin}')
    with pytest.raises(UsageError, match='does not wait'):
        load_plugin(file)


@pytest.mark.parametrize('name', sorted(file.name for file in PLUGINS.glob('*.yml')))
def test_plugin_files_that_are_handed_out_are_valid(name, tmp_path, monkeypatch):
    plugin, arguments, gpu = load_plugin(PLUGINS / name)
    assert plugin in SUBMIT
    key = {'sbatch': 'sbatch_args', 'qsub': 'qsub_args', 'bsub': 'bsub_args'}[SUBMIT[plugin]]
    assert arguments[key]
    assert gpu[key]
    monkeypatch.setenv('LOGNAME', 'ada')
    monkeypatch.setattr(
        'time.sleep', lambda seconds: None
    )  # SGE's asks its queue, which is not here, again and again
    runner = open_plugin(plugin, arguments, tmp_path)
    assert getattr(runner, f'_{key}') == arguments[key]


def test_plugin_files_are_there():
    assert {load_plugin(file)[0] for file in PLUGINS.glob('*.yml')} == {
        'SLURM',
        'SLURMGraph',
        'SGE',
        'PBS',
        'LSF',
    }


@pytest.mark.parametrize(
    ('asked_for', 'gpu', 'method', 'expected'),
    [
        ('auto', {'sbatch_args': '--gres=gpu:1'}, 'isotone', 'cuda:0'),
        ('auto', None, 'isotone', 'cpu'),
        ('cuda', None, 'isotone', 'cuda:0'),
        ('cuda:1', None, 'isotone', 'cuda:1'),
        ('cpu', {'sbatch_args': '--gres=gpu:1'}, 'isotone', 'cpu'),
        ('auto', {'sbatch_args': '--gres=gpu:1'}, 'tscore', 'cpu'),
        ('cuda', {'sbatch_args': '--gres=gpu:1'}, 'tscore', 'cpu'),
    ],
)
def test_device_of_jobs(asked_for, gpu, method, expected, make_settings):
    """The machine that submits has no GPU; its jobs may. Brain extraction stays on the CPU."""
    card = registry.get(method).card
    found = devices(make_settings(device=asked_for), card, ('SLURM', {}, gpu))
    assert found == (expected, 'cpu')


# What a job of one subject reads.


@pytest.mark.parametrize(
    ('values', 'everyone'),
    [
        ({'harmonizer': 'nyul'}, True),
        ({'harmonizer': 'nyul', 'model': '/models/nyul'}, False),
        ({'harmonizer': 'tscore'}, False),
    ],
)
def test_job_of_one_subject_looks_at_all_only_to_learn(
    values, everyone, make_settings, make_data_set, tmp_path, monkeypatch
):
    from bidsharm.workflows import participant

    make_data_set(tmp_path / 'bids', {'01': 'A', '02': 'A', '03': 'B'})
    seen = []
    monkeypatch.setattr(
        participant, 'make_plan', lambda settings, selection, *, everyone: seen.append(everyone)
    )
    participant.plan_run(make_settings(participant_label=('01',), **values))
    assert len(seen[0].subjects) == (3 if everyone else 1)


def test_index_that_is_kept_serves_the_target_too(make_settings, make_data_set, tmp_path, monkeypatch):
    from bidsharm.workflows import participant

    from bidsharm.bids import index

    make_data_set(tmp_path / 'bids', {'01': 'A', '02': 'A', '03': 'B'})
    settings = make_settings(
        participant_label=('01',), harmonizer='nyul', bids_database_dir=tmp_path / 'index'
    )
    monkeypatch.setattr(participant, 'make_plan', lambda settings, selection, *, everyone: everyone)
    made = []
    whole = index._layout
    monkeypatch.setattr(index, '_layout', lambda *given, **more: made.append(more) or whole(*given, **more))
    assert len(participant.plan_run(settings).subjects) == 3
    assert len(made) == 2, 'once to make it, once to open it'
    assert len(participant.plan_run(settings).subjects) == 3
    assert len(made) == 3
