"""What the scheduler tells becomes events and a table, also where steps fail."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from bidsharm.workflows.engine import configure, run_graph
from bidsharm.workflows.events import EventLog, read_events
from bidsharm.workflows.steps import COLUMNS, Excess, StepRecorder
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.interfaces.base import Interface, TraitedSpec, traits


class _Number(TraitedSpec):
    value = traits.Int()


class Take(Interface):
    """Takes so many MB; fails where they are below 0."""

    input_spec = output_spec = _Number

    def _compute(self, cwd: Path) -> dict[str, Any]:
        if self.inputs.value < 0:
            raise ValueError('It broke.')
        bytearray(self.inputs.value * 1_000_000)
        return {'value': self.inputs.value}


def graph(folder: Path, good: str, bad: str, *, megabytes: int = 0, planned_gb: float = 0.3) -> pe.Workflow:
    """Return a graph as those of two scans: in one the first step fails."""
    workflow = pe.Workflow(name='bidsharm_wf', base_dir=str(folder))
    for scan, value in ((good, megabytes), (bad, -1)):
        inner = pe.Workflow(name=f'prep_{scan}_wf')
        first = pe.Node(Take(value=value), name='first', mem_gb=planned_gb, n_procs=2)
        collect = pe.Node(niu.Merge(1), name='collect', run_without_submitting=True)
        last = pe.Node(Take(), name='last')
        inner.connect([
            (first, collect, [('value', 'in1')]),
            (first, last, [('value', 'value')]),
        ])  # fmt: skip
        subject = pe.Workflow(name=f'{scan.rsplit("_", 1)[0]}_wf')
        subject.add_nodes([inner])
        workflow.add_nodes([subject])
    return workflow


@pytest.fixture
def recorded(make_raw, make_settings, tmp_path, clean_nipype):
    """Return a function that runs the graph and gives its events, its table and the recorder."""

    def run(number: int = 0, plugin: str = 'MultiProc', **of_graph: Any) -> tuple[list, list, StepRecorder]:
        log_dir = tmp_path / f'logs_{number}'
        log_dir.mkdir()
        scans = [make_raw(tmp_path / 'bids', name) for name in ('sub-1_T1w', 'sub-2_T1w')]
        given = {}
        if plugin != 'MultiProc':
            given['use_plugin'] = tmp_path / 'plugin.yml'
            given['use_plugin'].write_text(f'plugin: {plugin}')
        settings = make_settings(nprocs=2, mem_gb=4, **given)
        configure(settings, log_dir)
        events = EventLog()
        events.open(log_dir / 'events.jsonl')
        recorder = StepRecorder(events, log_dir)
        recorder.know(scans)
        nodes = [scan.node for scan in scans]
        run_graph(graph(tmp_path / 'work', *nodes, **of_graph), settings, on_node=recorder.on_node)
        with (log_dir / 'resources.tsv').open(newline='') as file:
            rows = list(csv.DictReader(file, delimiter='\t'))
        return read_events(log_dir / 'events.jsonl'), rows, recorder

    return run


def story(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return sorted((line['scan'], line['step'], line['event']) for line in events)


@pytest.mark.parametrize('plugin', ['MultiProc', 'Linear'])
def test_steps_that_go_well_and_one_that_fails(plugin, recorded):
    events, rows, recorder = recorded(plugin=plugin)
    assert story(events) == [
        ('sub-1_T1w', 'prep.first', 'step_finished'), ('sub-1_T1w', 'prep.first', 'step_started'),
        ('sub-1_T1w', 'prep.last', 'step_finished'), ('sub-1_T1w', 'prep.last', 'step_started'),
        ('sub-2_T1w', 'prep.first', 'step_failed'), ('sub-2_T1w', 'prep.first', 'step_started'),
    ]  # fmt: skip
    for line in events:
        assert (
            line['node']
            == f'bidsharm_wf.{line["scan"][:5].replace("-", "_")}_wf.prep_{line["scan"].replace("-", "_")}_wf.{line["step"][5:]}'
        )
        if line['event'] != 'step_started':
            assert 0 <= line['seconds'] < 60
            assert line['peak_gb'] > 0
            assert not line.get('cached')
    first = next(line for line in events if line['step'] == 'prep.first')
    assert (first['planned_gb'], first['threads']) == (0.3, 2)
    assert sorted((row['scan'], row['step'], row['state']) for row in rows) == [
        ('sub-1_T1w', 'prep.first', 'finished'), ('sub-1_T1w', 'prep.last', 'finished'),
        ('sub-2_T1w', 'prep.first', 'failed'),
    ]  # fmt: skip
    assert list(rows[0]) == list(COLUMNS)
    dictionary = json.loads((recorder.log_dir / 'resources.json').read_text())
    assert set(dictionary) == set(COLUMNS)


@pytest.mark.parametrize('plugin', ['MultiProc', 'Linear'])
def test_what_an_earlier_run_measured_does_not_count_again(plugin, recorded):
    recorded()
    events, rows, _ = recorded(1, plugin=plugin)
    ends = {(line['scan'], line['step']): line for line in events if line['event'] != 'step_started'}
    assert ends['sub-1_T1w', 'prep.first']['cached']
    assert ends['sub-1_T1w', 'prep.first']['peak_gb'] is None
    assert [(row['scan'], row['state']) for row in rows] == [('sub-2_T1w', 'failed')]


def test_a_step_that_takes_more_than_planned_is_noted(recorded):
    # A worker begins with a part of what this process has: how much of it counts is not known here.
    events, _, recorder = recorded(megabytes=900, planned_gb=0.3)
    excess = recorder.over['prep.first']
    peaks = [line['peak_gb'] for line in events if line['step'] == 'prep.first' and 'peak_gb' in line]
    assert excess.planned_gb == 0.3
    assert excess.peak_gb == max(peaks) > 0.9
    assert excess.count == sum(peak > 0.4 for peak in peaks)


@pytest.mark.parametrize(
    ('peak', 'planned', 'over'),
    [(1.19, 1.0, False), (1.21, 1.0, True), (0.25, 0.2, False), (0.31, 0.2, True), (None, 0.1, False)],
)
def test_when_it_is_too_much(peak, planned, over):
    recorder = StepRecorder(EventLog())
    for more in (0.0, 0.5):
        recorder._tabulate({'step': 'n4', 'peak_gb': peak, 'planned_gb': planned + more})
    assert recorder.over == ({'n4': Excess(peak, planned, 1)} if over else {})


def test_names_of_steps(make_raw, tmp_path):
    recorder = StepRecorder(EventLog())
    scans = [make_raw(tmp_path, name) for name in ('sub-1_T1w', 'sub-1_ses-1_T1w', 'sub-1_ses-1_run-1_T2w')]
    recorder.know(scans)
    place = recorder.place
    for scan in scans:
        assert place(f'bidsharm_wf.sub_1_wf.ds_{scan.node}_MNI_xfm_wf.save') == (scan.name, 'ds_MNI_xfm.save')
        assert place(f'target_ab12_wf.prep_{scan.node}_wf.n4_wf.n4') == (scan.name, 'prep.n4.n4')
    assert place('target_ab12_wf.fit') == ('', 'fit')
    assert place('bidsharm_wf.sub_9_wf.prep_sub_9_T1w_wf.n4') == ('', 'prep_sub_9_T1w.n4')
