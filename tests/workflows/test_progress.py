"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import types
from typing import Any

import pytest
from bidsharm.workflows.base import ScanPlan, init_bidsharm_wf
from bidsharm.workflows.events import EventLog
from bidsharm.workflows.logs import Screen
from bidsharm.workflows.progress import Progress
from bidsharm.workflows.steps import StepRecorder
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph
from rich.console import Console


def node(name: str, path: str = '') -> Any:
    """Return as much of a node as the scheduler's messages carry."""
    inputs = types.SimpleNamespace(qc_path=path)
    return types.SimpleNamespace(
        name=name, fullname=f'bidsharm_wf.sub_01_wf.{name}', inputs=inputs, mem_gb=0.2, n_procs=1,
        output_dir=lambda: '/nonexistent',
    )  # fmt: skip


def progress_of(console: Console, total: int, events: EventLog | None = None) -> Progress:
    return Progress(Screen(console), total=total, recorder=StepRecorder(events or EventLog()))


def sink(label: str) -> Any:
    return node('ds_qc', f'sub-{label}/anat/sub-{label}_desc-T1w_qc.json')


def graph(steps: int = 3) -> pe.Workflow:
    workflow = pe.Workflow(name='bidsharm_wf')
    nodes = [pe.Node(niu.Merge(1), name=f'step_{index}') for index in range(steps)]
    workflow.add_nodes(nodes)
    return workflow


@pytest.fixture
def plain() -> Console:
    """A file, or the log of a cluster."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=True)


def done(progress: Progress, item: Any) -> None:
    progress.on_node(item, 'start')
    progress.on_node(item, 'end')


def test_without_a_terminal_there_is_one_line_a_scan(plain):
    with progress_of(plain, 3) as progress:
        progress.skip(1)
        progress.start_batch(graph(), ['sub-02_T1w', 'sub-03_T1w'])
        for item in (node('conform'), node('n4'), sink('02'), node('harmonize'), sink('03')):
            done(progress, item)
    assert plain.file.getvalue().splitlines() == [
        'working on 2 scans',
        '  [2/3] sub-02_desc-T1w_qc.json written',
        '  [3/3] sub-03_desc-T1w_qc.json written',
    ]
    assert '\x1b' not in plain.file.getvalue()


def test_failed_step_is_told_and_does_not_count_as_a_scan(plain):
    with progress_of(plain, 2) as progress:
        progress.start_batch(graph(), ['sub-01_T1w', 'sub-02_T1w'])
        for item in (node('conform'), sink('02')):
            progress.on_node(item, 'start')
            progress.on_node(item, 'exception')
        done(progress, sink('01'))
    said = plain.file.getvalue()
    assert 'a step failed: bidsharm_wf.sub_01_wf.conform' in said
    assert 'a step failed: bidsharm_wf.sub_01_wf.ds_qc' in said
    assert '[1/2] sub-01_desc-T1w_qc.json written' in said
    assert 'sub-02' not in said
    assert progress.done == 1


def test_step_that_never_started_is_not_written(plain):
    """Nipype's Linear plugin reports an end also for what it passes over behind a failed step."""
    with progress_of(plain, 1) as progress:
        progress.start_batch(graph(), ['sub-01_T1w'])
        progress.on_node(node('conform'), 'start')
        progress.on_node(node('conform'), 'exception')
        progress.on_node(sink('01'), 'end')
    assert 'written' not in plain.file.getvalue()
    assert progress.done == 0


def test_scans_done_before_count(plain):
    with progress_of(plain, 5) as progress:
        progress.skip(2)
        progress.skip(0)
        done(progress, sink('04'))
    assert progress.done == 3
    assert '[3/5]' in plain.file.getvalue()


def test_names_are_shown_as_they_are(plain):
    """Square brackets are no markup here."""
    with progress_of(plain, 1) as progress:
        done(progress, node('ds_qc', 'sub-01/anat/[red]x_qc.json'))
    assert '[red]x_qc.json written' in plain.file.getvalue()


def test_bars_on_a_terminal(terminal):
    with progress_of(terminal, 2) as progress:
        progress.start_batch(graph(), ['sub-01_T1w'])
        done(progress, node('conform'))
        done(progress, sink('01'))
        tasks = {task.id: task for task in progress.bars.tasks}
        assert (tasks[progress.scans].completed, tasks[progress.scans].total) == (1, 2)
        assert (tasks[progress.steps].completed, tasks[progress.steps].total) == (2, 3)
        progress.start_batch(graph(5), ['sub-02_T1w'])
        tasks = {task.id: task for task in progress.bars.tasks}
        assert (tasks[progress.steps].completed, tasks[progress.steps].total) == (0, 5)
        assert tasks[progress.scans].completed == 1
    assert 'working on' not in terminal.file.getvalue()


def test_bar_of_the_steps_can_reach_its_end(terminal, make_raw, make_method, tmp_path):
    """Its total is the number of nodes that are run; inputnode and outputnode are not."""
    scan = make_raw(tmp_path, 'sub-01_T1w')
    workflow = init_bidsharm_wf(
        subjects={'01': [ScanPlan(scan, scan)]}, method=make_method(), output_dir=tmp_path / 'out'
    )
    run = generate_expanded_graph(workflow._create_flat_graph())
    with progress_of(terminal, 1) as progress:
        progress.start_batch(workflow, ['sub-01_T1w'])
        (steps,) = (task for task in progress.bars.tasks if task.id == progress.steps)
        assert steps.total == len(run)


def test_ends_also_after_an_error(terminal):
    def stop() -> None:
        with progress_of(terminal, 1) as progress:
            assert progress.bars.live.is_started
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    # The cursor, hidden while bars move, is there again.
    assert terminal.file.getvalue().rstrip().endswith('\x1b[?25h')
