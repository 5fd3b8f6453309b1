"""Running graphs: plugins, logs, crash files, and whose failure it was."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import types
from pathlib import Path

import pytest
from bidsharm.workflows.engine import (
    Failure,
    belongs,
    configure,
    draw_graph,
    gpu_slots,
    keep_resources,
    load_plugin,
    read_failure,
    read_failures,
    run_graph,
)
from nipype import config
from nipype import logging as nipype_logging
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.errors import UsageError

NODE = 'bidsharm_wf.sub_01_wf.prep_sub_01_T1w_wf.conform'


def crash(traceback: str, *, node: str = NODE) -> str:
    """Return a crash file as Nipype 1.10 and 1.11 write it."""
    indented = traceback.replace('\n', '\n\t')
    return (
        f'Node: {node}\nWorking directory: /tmp/work/sub_01_wf/conform\n\nNode inputs:\n\nin_file = <undefined>\n'
        'name = RuntimeError: not this one\n\n'
        'Traceback (most recent call last):\n'
        '  File "/env/nipype/pipeline/plugins/multiproc.py", line 66, in run_node\n'
        '    result["result"] = node.run(updatehash=updatehash)\n'
        'nipype.pipeline.engine.nodes.NodeExecutionError: Exception raised while executing Node conform.\n\n'
        f'Traceback:\n\t{indented}\n\n'
    )


def program(code: int) -> str:
    """Return the traceback of a program that ended badly."""
    return (
        'Traceback (most recent call last):\n  File "/env/nipype/interfaces/base/core.py", line 454, in run\n'
        'RuntimeError: Command:\nantsRegistration --dimensionality 3\nStandard output:\nall fine\n'
        f'Standard error:\n\nReturn code: {code}'
    )


# Crash files.


def test_our_own_error_keeps_its_words(tmp_path):
    file = tmp_path / 'crash-20260101-user-conform.txt'
    file.write_text(
        crash(
            'Traceback (most recent call last):\n  File "/env/bidsharm/imaging/grids.py", line 10, in conform\n'
            'OSError: it is short\n\nDuring handling of the above exception, another exception occurred:\n\n'
            'bidsharm.errors.ScanError: sub-01_T1w: The file is cut off. Copy it again.'
        )
    )
    failure = read_failure(file)
    assert failure.node == NODE
    assert failure.what == 'sub-01_T1w: The file is cut off. Copy it again.'
    assert 'Traceback' in failure.details
    assert failure.file == file


def test_error_of_another_library_is_named(tmp_path):
    file = tmp_path / 'crash.txt'
    text = 'Traceback (most recent call last):\nValueError: operands could not be broadcast together'
    file.write_text(crash(text))
    assert read_failure(file).what == 'ValueError: operands could not be broadcast together'
    file.write_text(crash('Traceback (most recent call last):\nValueError: ' + 'x' * 5000))
    assert len(read_failure(file).what) < 400


@pytest.mark.parametrize('name', ['AssertionError', 'KeyboardInterrupt'])
def test_error_without_words_is_named(name, tmp_path):
    """Python writes an error without a message as its bare name."""
    file = tmp_path / 'crash.txt'
    file.write_text(crash(f'Traceback (most recent call last):\n  File "x.py", line 1, in f\n{name}'))
    assert read_failure(file).what.startswith(name)


@pytest.mark.parametrize(
    ('line', 'what', 'fix'),
    [
        ("OSError: [Errno 28] No space left on device: '/out/sub-01.nii'", '/out/sub-01.nii: The disk is full.', 'Make room'),
        ('OSError: [Errno 28] No space left on device', 'The disk is full.', 'Make room'),
        ('OSError: 4096 requested and 512 written', 'The disk is full.', 'Make room'),
        ("OSError: [Errno 122] Disk quota exceeded: '/out'", '/out: Your quota is used up.', 'Make room'),
        ("OSError: [Errno 30] Read-only file system: '/out'", '/out: The file system can only be read.', 'can be written'),
        ("PermissionError: [Errno 13] Permission denied: '/data/x'", '/data/x: There is no permission for it.', 'permission'),
        ('MemoryError', 'There is not enough memory.', 'less at a time'),
        ('numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB', 'There is not enough memory.', 'Give it more'),
    ],
)  # fmt: skip
def test_machine_that_can_give_no_more(line, what, fix, tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_text(crash(f'Traceback (most recent call last):\n  File "x.py", line 1, in f\n{line}'))
    failure = read_failure(file)
    assert failure.what == what
    assert fix in failure.fix


def test_step_that_could_not_write_its_result(tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_text(crash(
        'concurrent.futures.process._RemoteTraceback:\n"""\nTraceback (most recent call last):\n  File "multiproc.py", line 67, in run_node\n'
        "OSError: [Errno 28] No space left on device: '/scratch/_inputs.pklz.tmp'\n\n"
        'During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n'
        '  File "utils.py", line 294, in load_resultfile\nFileNotFoundError: /scratch/sub_01_wf/conform/result_conform.pklz\n"""\n\n'
        'The above exception was the direct cause of the following exception:\n\n'
        'FileNotFoundError: /scratch/sub_01_wf/conform/result_conform.pklz\n'
    ))  # fmt: skip
    assert read_failure(file).what == '/scratch/_inputs.pklz.tmp: The disk is full.'


@pytest.mark.parametrize('signal', [9, 11, 6])
def test_program_ended_by_a_signal(signal, tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_text(crash(program(-signal)))
    failure = read_failure(file)
    assert re.search(rf'signal {signal}\b', failure.what)
    assert 'memory' in failure.what
    assert failure.node == NODE


def test_program_that_failed_is_not_called_killed(tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_text(crash(program(1)))
    assert 'signal' not in read_failure(file).what
    assert 'RuntimeError' in read_failure(file).what


@pytest.mark.parametrize('content', [b'', b'\n\n', bytes(range(256)) * 40, b'\xff\xfe\x00N\x00o', b'Node:'])
def test_whatever_a_crash_file_holds_something_readable_comes_back(content, tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_bytes(content)
    failure = read_failure(file)
    assert failure.what == 'The step failed.'
    assert failure.node == ''
    assert failure.file == file


def test_crash_file_that_cannot_be_read(tmp_path):
    assert 'could not be read' in read_failure(tmp_path / 'gone.txt').what
    assert 'could not be read' in read_failure(tmp_path).what


def test_crash_files_come_oldest_first_and_without_the_known(tmp_path):
    for age, name in ((30, 'crash-b'), (20, 'crash-a'), (10, 'crash-c')):
        file = tmp_path / f'{name}.txt'
        file.write_text(crash(f'ValueError: {name}'))
        os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / 'nipype.log').write_text('ValueError: of no interest')
    assert [item.what[-1] for item in read_failures(tmp_path)] == ['b', 'a', 'c']
    known = {tmp_path / 'crash-a.txt'}
    assert [item.what[-1] for item in read_failures(tmp_path, since=known)] == ['b', 'c']


# Whose failure.


NAMES = [
    'sub-01_T1w', 'sub-011_T1w', 'sub-1_T1w', 'sub-01_T2w', 'sub-01_acq-x_T1w', 'sub-01_run-1_T1w', 'sub-01_run-10_T1w',
    'sub-01_acq-x_run-1_T1w', 'sub-01_ses-1_T1w', 'sub-01_ses-11_T1w', 'sub-01_ses-1_run-1_T1w', 'sub-01_FLAIR',
]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'graph',
    [
        'prep_{}_wf.bias_correction_wf.n4', 'prep_{}_wf.conform', 'harmonize_{}_wf.harmonize', 'qc_{}_wf.draw',
        'ds_preproc_{}_wf.ds_preproc', 'ds_qc_{}_wf.ds_qc', 'register_{}_template_MNI152NLin2009cAsym_1_wf.register',
        'ds_{}_template_T1w_1_wf.ds_space',
    ],
)  # fmt: skip
def test_failure_belongs_to_one_scan_only(name, graph, make_raw, tmp_path):
    scans = {other: make_raw(tmp_path, other, content=None) for other in NAMES}
    node = f'bidsharm_wf.sub_01_wf.{graph.format(scans[name].node)}'
    failure = Failure(node, 'it failed')
    assert [other for other, scan in scans.items() if belongs(failure, scan)] == [name]


@pytest.mark.parametrize('node', ['', 'target_wf.fit', 'bidsharm_wf.sub_01_wf.template'])
def test_failure_of_no_scan(node, make_raw, tmp_path):
    scans = [make_raw(tmp_path, name, content=None) for name in NAMES]
    assert not any(belongs(Failure(node, 'it failed'), scan) for scan in scans)


def test_failure_of_the_anchor_is_not_that_of_its_follower(make_raw, tmp_path):
    anchor, follower = (make_raw(tmp_path, f'sub-01_ses-1_{name}', content=None) for name in ('T1w', 'T2w'))
    failure = Failure(f'bidsharm_wf.sub_01_wf.prep_{anchor.node}_wf.segment', 'it failed')
    assert belongs(failure, anchor)
    assert not belongs(failure, follower)


# Plugins and cards.


def test_no_plugin_file():
    assert load_plugin(None) is None


def test_plugin_file(tmp_path):
    file = tmp_path / 'plugin.yml'
    file.write_text(
        'plugin: SLURM\nplugin_args: {sbatch_args: "--mem=8G", max_jobs: 50}\n'
        'gpu_plugin_args: {sbatch_args: "--gres=gpu:1"}\n'
    )
    name, arguments, gpu = load_plugin(file)
    assert name == 'SLURM'
    assert arguments == {'sbatch_args': '--mem=8G', 'max_jobs': 50}
    assert gpu == {'sbatch_args': '--gres=gpu:1'}
    file.write_text('plugin: Linear\nplugin_args:\n')
    assert load_plugin(file) == ('Linear', {}, None)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'plugin: [', 'cannot be read'),
        (b'\xff\xfe\x00', 'cannot be read'),
        (b'', 'must hold "plugin"'),
        (b'- plugin', 'must hold "plugin"'),
        (b'plugin_args: {}', 'must hold "plugin"'),
        (b'plugin: Linear\nnprocs: 4', 'must hold "plugin"'),
        (b'plugin: Multiproc', 'no plugin "Multiproc"'),
        (b'plugin: ../../evil', 'no plugin'),
        (b'plugin: Linear\nplugin_args: 4', None),
        (b'plugin: Linear\nplugin_args: none', None),
        (b'plugin: Linear\nplugin_args: [a, b]', None),
        (b'plugin: Linear\ngpu_plugin_args: --gres=gpu:1', None),
    ],
)
def test_wrong_plugin_file_is_named(content, message, tmp_path):
    file = tmp_path / 'plugin.yml'
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_plugin(file)
    assert caught.value.where == str(file)


def test_missing_plugin_file(tmp_path):
    with pytest.raises(UsageError, match=r'gone\.yml'):
        load_plugin(tmp_path / 'gone.yml')


@pytest.mark.parametrize(
    ('device', 'cards', 'slots'),
    [
        ('cpu', 4, 0),
        ('', 4, 0),
        ('cuda', 4, 4),
        ('cuda', 0, 1),
        ('cuda:0', 4, 1),
        ('cuda:3', 4, 1),
        ('mps', 0, 1),
    ],
)
def test_cards_that_may_work_at_once(device, cards, slots, monkeypatch):
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(device_count=lambda: cards))
    monkeypatch.setitem(sys.modules, 'torch', torch)
    assert gpu_slots(device) == slots


# Running.


def fail(value):
    raise ValueError(f'no {value} today')


def double(value):
    return 2 * value


def write(value, folder):
    from pathlib import Path

    Path(folder, f'{value}.txt').write_text(str(value))
    return value


def branches(folder: Path) -> pe.Workflow:
    """Return a graph with a branch that fails at its first step and one that does not."""
    workflow = pe.Workflow(name='branches_wf', base_dir=str(folder / 'work'))
    for index, (name, function) in enumerate((('bad', fail), ('good', double)), start=1):
        first = pe.Node(niu.Function(function=function, output_names=['out']), name=f'first_{name}')
        first.inputs.value = index
        second = pe.Node(
            niu.Function(input_names=['value', 'folder'], function=write, output_names=['out']),
            name=f'second_{name}',
        )
        second.inputs.folder = str(folder)
        workflow.connect(first, 'out', second, 'value')
    return workflow


@pytest.mark.usefixtures('clean_nipype')
@pytest.mark.parametrize('plugin', ['MultiProc', 'Linear'])
def test_a_failed_node_does_not_stop_the_other_branches(plugin, make_settings, tmp_path, monkeypatch):
    log_dir, here = tmp_path / 'logs', tmp_path / 'here'
    log_dir.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    given = {}
    if plugin == 'Linear':
        given['use_plugin'] = tmp_path / 'plugin.yml'
        given['use_plugin'].write_text('plugin: Linear')
    settings = make_settings(nprocs=2, mem_gb=1, **given)
    configure(settings, log_dir)
    seen = []
    run_graph(
        branches(tmp_path), settings, on_node=lambda node, status, **_: seen.append((node.name, status))
    )
    assert (tmp_path / '4.txt').exists()
    assert not (tmp_path / '2.txt').exists()
    (failure,) = read_failures(log_dir)
    assert failure.node == 'branches_wf.first_bad'
    assert failure.what == 'ValueError: no 1 today'
    assert ('first_bad', 'exception') in seen
    assert {('first_good', 'end'), ('second_good', 'end')} <= set(seen)
    assert ('second_bad', 'start') not in seen
    assert 'first_bad' in (log_dir / 'nipype.log').read_text()
    # Nothing is left where the user stands.
    assert list(here.iterdir()) == []
    assert Path.cwd() == here


@pytest.mark.usefixtures('clean_nipype')
def test_arguments_of_a_plugin_file_win_but_only_for_the_same_plugin(make_settings, tmp_path, monkeypatch):
    calls = []
    workflow = branches(tmp_path)

    def run(plugin):
        calls.append((type(plugin).__name__.removesuffix('Plugin'), plugin.plugin_args))

    (tmp_path / 'sbatch').touch(mode=0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('LOGNAME', 'ada')
    monkeypatch.setenv('PYTHONPATH', '')
    monkeypatch.setattr(workflow, 'run', run, raising=False)
    file = tmp_path / 'plugin.yml'
    settings = make_settings(nprocs=3, mem_gb=2.5)
    run_graph(workflow, settings)
    run_graph(workflow, settings, device='cuda:0')
    file.write_text('plugin: MultiProc\nplugin_args: {n_procs: 7}')
    run_graph(workflow, make_settings(nprocs=3, mem_gb=2.5, use_plugin=file))
    file.write_text('plugin: SLURM\nplugin_args: {sbatch_args: "-p short"}')
    run_graph(workflow, make_settings(nprocs=3, use_plugin=file, work_dir=tmp_path), on_node=print)
    (plain, card, more, cluster) = calls
    assert plain[0] == card[0] == more[0] == 'MultiProc'
    assert (plain[1]['n_procs'], plain[1]['memory_gb']) == (3, 2.5)
    assert 'n_gpu_procs' not in plain[1]
    assert card[1]['n_gpu_procs'] == 1
    assert (more[1]['n_procs'], more[1]['memory_gb']) == (7, 2.5)
    assert cluster[0] == 'Slurm'
    assert cluster[1].pop('template').startswith('#!/bin/bash\n')
    assert cluster[1] == {'sbatch_args': '-p short', 'status_callback': print}


@pytest.mark.usefixtures('clean_nipype')
@pytest.mark.parametrize('stop', [False, True])
def test_logs_and_crash_files_go_where_told(stop, make_settings, tmp_path, capfd):
    log_dir = tmp_path / 'logs'
    log_dir.mkdir()
    configure(make_settings(stop_on_first_crash=stop), log_dir)
    assert config.get('execution', 'crashdump_dir') == str(log_dir)
    assert config.get('execution', 'crashfile_format') == 'txt'
    assert config.getboolean('execution', 'stop_on_first_crash') is stop
    for name in ('workflow', 'interface', 'utils'):
        nipype_logging.getLogger(f'nipype.{name}').warning('a word from %s', name)
    nipype_logging.getLogger('nipype.workflow').debug('too much')
    text = (log_dir / 'nipype.log').read_text()
    assert [name for name in ('workflow', 'interface', 'utils') if f'a word from {name}' in text] == [
        'workflow',
        'interface',
        'utils',
    ]
    assert text.count('a word from workflow') == 1
    assert 'too much' not in text
    assert capfd.readouterr() == ('', '')


@pytest.mark.usefixtures('clean_nipype')
def test_second_run_in_one_process_has_a_log_of_its_own(make_settings, tmp_path):
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        configure(make_settings(verbose=3), tmp_path / name)
        nipype_logging.getLogger('nipype.workflow').debug('this is the %s', name)
    assert 'this is the first' in (tmp_path / 'first' / 'nipype.log').read_text()
    assert 'second' not in (tmp_path / 'first' / 'nipype.log').read_text()
    assert 'this is the second' in (tmp_path / 'second' / 'nipype.log').read_text()


@pytest.mark.usefixtures('clean_nipype')
def test_a_clock_that_is_set_back_is_no_pause(tmp_path, make_settings, monkeypatch):
    """Nipype sleeps until a time of the day has come."""
    pauses, today, sleep, calls = [], time.time, time.sleep, itertools.count()

    def going_back() -> float:
        return today() - 86400 * next(calls)

    for name in ('nipype.pipeline.plugins.base', 'nipype.utils.filemanip'):
        monkeypatch.setattr(f'{name}.time', going_back)
    monkeypatch.setattr(
        'nipype.pipeline.plugins.base.sleep', lambda seconds: pauses.append(seconds) or sleep(0.01)
    )
    configure(make_settings(), tmp_path)
    run_graph(branches(tmp_path), make_settings(nprocs=1))
    assert pauses
    assert max(pauses) < 60


# Pictures of the graph.


def test_graph_without_graphviz(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'logs' / 'graph_01.dot'
    file.parent.mkdir()
    draw_graph(branches(tmp_path), file)
    text = file.read_text()
    edges = re.findall(r'"([^"]+)" -> "([^"]+)";', text)
    assert sorted(edges) == [
        (f'branches_wf.first_{name}', f'branches_wf.second_{name}') for name in ('bad', 'good')
    ]
    assert text.startswith('digraph ')
    assert text.rstrip().endswith('}')
    assert [path.name for path in file.parent.iterdir()] == ['graph_01.dot']


def test_graph_with_graphviz(tmp_path, monkeypatch):
    """A stand-in for ``dot`` writes the picture that it is asked for."""
    tool = tmp_path / 'bin' / 'dot'
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in -o*) echo drawn > "${word#-o}";; esac; done\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tool.parent}:{os.environ["PATH"]}')
    here, logs = tmp_path / 'here', tmp_path / 'logs'
    here.mkdir()
    logs.mkdir()
    monkeypatch.chdir(here)
    draw_graph(branches(tmp_path), logs / 'graph_01.dot')
    assert 'first_good' in (logs / 'graph_01.dot').read_text()
    assert [path for path in logs.iterdir() if path.suffix in ('.svg', '.png')]
    assert list(here.iterdir()) == []


def test_graph_that_takes_graphviz_too_long(tmp_path, monkeypatch):
    tool = tmp_path / 'bin' / 'dot'
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nexec sleep 60\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tool.parent}:{os.environ["PATH"]}')
    monkeypatch.setattr('bidsharm.workflows.engine.DRAWING_S', 0.2)
    draw_graph(branches(tmp_path), tmp_path / 'graph_01.dot')
    assert 'first_good' in (tmp_path / 'graph_01.dot').read_text()


def _sleep_and_write(path: str) -> str:
    import time
    from pathlib import Path

    time.sleep(1.0)
    Path(path).write_text('done')
    return path


def _fail() -> str:
    raise ValueError('broken')


@pytest.mark.usefixtures('clean_nipype')
def test_after_a_first_crash_no_worker_is_left_behind(make_settings, tmp_path):
    """The working folder goes away after the run: whoever still writes into it would fail loudly."""
    configure(make_settings(stop_on_first_crash=True), tmp_path)
    slow = pe.Node(
        niu.Function(function=_sleep_and_write, input_names=['path'], output_names=['out']), name='slow'
    )
    slow.inputs.path = str(tmp_path / 'slow.txt')
    fail = pe.Node(niu.Function(function=_fail, input_names=[], output_names=['out']), name='fail')
    workflow = pe.Workflow(name='two', base_dir=str(tmp_path / 'work'))
    workflow.add_nodes([slow, fail])
    before = {child.pid for child in multiprocessing.active_children()}
    run_graph(workflow, make_settings(nprocs=2, stop_on_first_crash=True))
    assert [failure.node for failure in read_failures(tmp_path)] == ['two.fail']
    assert {child.pid for child in multiprocessing.active_children()} <= before
    assert (tmp_path / 'slow.txt').read_text() == 'done', 'what had been started was waited for'


@pytest.mark.usefixtures('clean_nipype')
def test_what_the_monitor_measured_is_kept(make_settings, tmp_path):
    log_dir = tmp_path / 'logs'
    log_dir.mkdir()
    settings = make_settings(resource_monitor=True)
    configure(settings, log_dir)
    try:
        for _ in range(2):
            node = pe.Node(
                niu.Function(function=_sleep_and_write, input_names=['path'], output_names=['out']), name='n'
            )
            node.inputs.path = str(tmp_path / 'slow.txt')
            workflow = pe.Workflow(name='one', base_dir=str(tmp_path / 'work'))
            workflow.add_nodes([node])
            run_graph(workflow, settings)
            keep_resources(workflow, log_dir)
    finally:
        config.disable_resource_monitor()
    files = sorted(file.name for file in log_dir.glob('*.json'))
    assert files == ['resource_monitor.json', 'resource_monitor_2.json']
    assert 'rss_GiB' in json.loads((log_dir / files[0]).read_text())
