"""Workers that are lost cost the step that they were at, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from bidsharm.workflows.engine import configure, read_failures, run_graph
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

PATIENCE_S = 60.0


def killed() -> int:
    """As the kernel does it when memory has run out."""
    import os
    import time

    time.sleep(0.5)
    os.kill(os.getpid(), 9)
    return 0


def crashing() -> int:
    """As a library does it that has a mistake."""
    import ctypes
    import faulthandler
    import time

    faulthandler.disable()
    time.sleep(0.5)
    ctypes.string_at(0)
    return 0


def unsendable() -> int:
    """Return what cannot be sent to another process."""
    return (item for item in ())  # type: ignore[return-value]


def write(name: str, folder: str) -> str:
    import time
    from pathlib import Path

    time.sleep(1.0)
    Path(folder, name).touch()
    return name


def graph(folder: Path, bad: object) -> pe.Workflow:
    """Return a graph of a step that is lost, one that waits for it, and others that are at work then, or come later."""
    workflow = pe.Workflow(name='lost_wf', base_dir=str(folder / 'work'))
    broken = pe.Node(niu.Function(function=bad, input_names=[], output_names=['out']), name='broken')
    after = pe.Node(niu.Function(function=write, output_names=['out']), name='after')
    after.inputs.folder = str(folder)
    workflow.connect(broken, 'out', after, 'name')
    for index in range(4):
        node = pe.Node(niu.Function(function=write, output_names=['out']), name=f'good_{index}')
        node.inputs.name, node.inputs.folder = f'good-{index}', str(folder)
        workflow.add_nodes([node])
    return workflow


@pytest.mark.usefixtures('clean_nipype')
@pytest.mark.parametrize(
    ('bad', 'said'),
    [
        (killed, r'was ended by SIGKILL, probably because memory ran out'),
        (crashing, r'was ended by SIGSEGV'),
        (unsendable, r'pickle'),
    ],
    ids=lambda item: getattr(item, '__name__', ''),
)
def test_a_lost_worker_costs_one_step(bad, said, make_settings, tmp_path):
    log_dir = tmp_path / 'logs'
    log_dir.mkdir()
    settings = make_settings(nprocs=2, mem_gb=4)
    configure(settings, log_dir)
    seen: list[tuple[str, str]] = []
    run_graph(
        graph(tmp_path, bad), settings, on_node=lambda node, status, **_: seen.append((node.name, status))
    )
    (failure,) = read_failures(log_dir)
    assert failure.node == 'lost_wf.broken'
    assert re.search(said, failure.what)
    assert sorted(path.name for path in tmp_path.glob('good-*')) == [f'good-{index}' for index in range(4)]
    assert ('broken', 'exception') in seen
    assert ('after', 'start') not in seen


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


SCRIPT = """
import signal, sys, time
from pathlib import Path
from bidsharm.workflows.engine import configure, run_graph
from bidsharm.cli.ending import run_to_end
from bidsharm.settings import from_dict
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

here = Path(sys.argv[1])

def step(folder, index):
    import os, subprocess
    from pathlib import Path
    from bidsharm.interfaces.ants import _tethered
    from bidsharm.processes import as_parent
    program = subprocess.Popen(
        _tethered("python -m bidsharm.processes sleep 600"), shell=True, env={**os.environ, **as_parent()}
    )
    Path(folder, f'pids-{index}').write_text(f'{os.getpid()} {program.pid}')
    program.wait()

def work():
    settings = from_dict({'bids_dir': '/', 'output_dir': str(here / 'out'), 'device': 'cpu', 'nprocs': 2, 'mem_gb': 4.0,
                          'analysis_level': 'participant'})
    configure(settings, here)
    workflow = pe.Workflow(name='endless_wf', base_dir=str(here / 'work'))
    for index in range(2):
        node = pe.Node(niu.Function(function=step, input_names=['folder', 'index']), name=f'step_{index}')
        node.inputs.folder, node.inputs.index = str(here), index
        workflow.add_nodes([node])
    run_graph(workflow, settings)
    return 0

# Whatever runs the tests may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run_to_end('bidsharm', work, stopped='stopped.'))
"""


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda item: item.name
)
def test_workers_and_their_programs_end_with_the_main_process(number, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    program = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PATH': path},
    )
    deadline = time.monotonic() + PATIENCE_S
    notes = [tmp_path / f'pids-{index}' for index in range(2)]
    while not all(note.exists() and note.read_text() for note in notes) and time.monotonic() < deadline:
        time.sleep(0.05)
    family = [int(pid) for note in notes for pid in note.read_text().split()]
    assert len(family) == 4
    program.send_signal(number)
    _, err = program.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while any(map(runs, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, family))
    if number == signal.SIGKILL:
        assert program.returncode == -number
    else:
        assert (program.returncode, err) == (1, 'bidsharm: stopped.\n')
        assert not list(tmp_path.glob('crash-*')), 'nothing failed'
        assert not list((tmp_path / 'work').glob('.run-*'))
