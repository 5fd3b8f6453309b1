"""The group level: which results count, which scans are missing, and what ends the run at once."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from bidsharm.workflows.events import read_events
from bidsharm.workflows.group import chosen_records, run_group
from rich.console import Console

from bidsharm.bids.names import parse_name
from bidsharm.errors import ConfigurationError, ExitCode, NothingToDo, UsageError

SCANS = (
    'sub-01_ses-a_run-01_T1w', 'sub-01_ses-a_run-02_T1w', 'sub-01_ses-b_T1w', 'sub-01_ses-b_T2w',
    'sub-02_ses-a_T1w', 'sub-1_T1w',
)  # fmt: skip


def record_of(name: str) -> dict[str, object]:
    """Return the least that the QC step writes about a scan."""
    parsed = parse_name(name)
    assert parsed is not None
    entities, contrast = parsed
    return {
        'subject': entities['sub'], 'session': entities.get('ses'), 'scan': name, 'contrast': contrast, 'site': 'x',
        'harmonizer': {'name': 'tscore', 'title': 'T', 'target': 'canonical', 'device': 'cpu'}, 'verdict': 'pass',
        'checks': [], 'measures': {'before': {}, 'after': {}, 'change': {}}, 'warnings': [], 'notes': {},
        'quantiles': {'before': [0.0] * 101, 'after': [0.0] * 101, 'target': None},
        'histogram': {}, 'version': '0', 'figures': {}, 'outputs': {},
    }  # fmt: skip


@pytest.fixture
def group(tmp_path, make_settings):
    """Return a function that runs the group level on the results of ``SCANS``, and gives what it said."""

    def run(**values: object) -> str:
        console = Console(file=io.StringIO(), width=300)
        assert run_group(make_settings(analysis_level='group', **values), console) == ExitCode.OK
        return console.file.getvalue()

    for name in SCANS:
        item = record_of(name)
        session = f'ses-{item["session"]}' if item['session'] else ''
        folder = tmp_path / 'out' / f'sub-{item["subject"]}' / session / 'anat'
        folder.mkdir(parents=True, exist_ok=True)
        stem = name.removesuffix(f'_{item["contrast"]}')
        (folder / f'{stem}_desc-{item["contrast"]}_qc.json').write_text(json.dumps(item))
    return run


def listed(out: Path) -> set[str]:
    """Return the scans in the tables."""
    found: set[str] = set()
    for table in out.glob('group_*.tsv'):
        with table.open(encoding='utf-8', newline='') as file:
            found |= {row['scan'] for row in csv.DictReader(file, delimiter='\t')}
    return found


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ({}, set(SCANS)),
        ({'participant_label': ['01']}, set(SCANS[:4])),
        ({'participant_label': ['1']}, {SCANS[5]}),
        ({'session_label': ['a']}, {SCANS[0], SCANS[1], SCANS[4]}),
        ({'contrasts': ['T2w', 'FLAIR']}, {SCANS[3]}),
        ({'run': ['1']}, {SCANS[0]}),
        ({'participant_label': ['01'], 'session_label': ['b'], 'contrasts': ['T1w']}, {SCANS[2]}),
    ],
)
def test_the_options_choose_among_the_results(group, tmp_path, values, expected):
    assert f'{len(expected)} scan' in group(**values)
    assert listed(tmp_path / 'out') == expected


@pytest.mark.parametrize(
    ('values', 'option', 'there'),
    [
        ({'participant_label': ['01', 'zz']}, '--participant-label', '01, 02, 1'),
        ({'session_label': ['c']}, '--session-label', 'a, b'),
    ],
    ids=str,
)
def test_labels_that_are_nowhere(group, tmp_path, values, option, there):
    with pytest.raises(UsageError) as caught:
        group(**values)
    assert caught.value.where == option
    assert caught.value.what.endswith(f'{next(iter(values.values()))[-1]}.')
    assert caught.value.fix == f'There are: {there}.'
    assert not list((tmp_path / 'out').glob('group*'))


@pytest.mark.parametrize(
    ('values', 'said', 'there'),
    [
        ({'contrasts': ['FLAIR']}, '--contrasts FLAIR leaves no harmonized scan out of 6', 'T1w, T2w'),
        ({'run': ['7']}, '--run 7 leaves no harmonized scan out of 6', '01, 02, none'),
        ({'run': ['²']}, '--run ² leaves', '01, 02, none'),
        ({'participant_label': ['02'], 'session_label': ['b']}, '--session-label b leaves no harmonized scan out of 1', 'a'),
    ],
)  # fmt: skip
def test_the_option_that_leaves_nothing_is_named(group, values, said, there):
    with pytest.raises(NothingToDo) as caught:
        group(**values)
    assert caught.value.what.startswith(said)
    assert caught.value.fix.startswith(f'There are: {there}.')


def test_missing_scans_are_those_of_the_same_choice(group, make_data_set, tmp_path):
    make_data_set(tmp_path / 'bids', {'02': 'north', '03': 'south'}, contrasts=('T1w', 'T2w'))
    assert 'missing   sub-03_T1w' in group(participant_label=['01', '03'])
    assert 'missing   ' not in group(participant_label=['01']), 'its raw data are gone'
    said = group(contrasts=['T2w'])
    assert 'missing   sub-03_T2w' in said
    assert 'T1w' not in said


def test_subject_of_the_data_set_that_has_no_result(group, make_data_set, tmp_path):
    """It is no slip of the pen, and what it lacks is the participant level."""
    make_data_set(tmp_path / 'bids', {'03': 'south'})
    with pytest.raises(NothingToDo, match='--participant-label 03 leaves') as caught:
        group(participant_label=['03'])
    assert 'participant level' in caught.value.fix


def test_a_rule_for_sites_does_not_hide_what_is_missing(group, make_data_set, tmp_path):
    make_data_set(tmp_path / 'bids', {'03': 'south'})
    assert 'missing   sub-03_T1w' in group(site='nonsense')


def test_device_and_harmonizer_have_to_be_there(group, tmp_path):
    with pytest.raises(ConfigurationError, match='cuda:999'):
        group(device='cuda:999')
    with pytest.raises(UsageError, match='There is no harmonizer "niul"'):
        group(harmonizer='niul')
    assert not list((tmp_path / 'out').glob('group*'))


def test_no_result_at_all(make_settings):
    with pytest.raises(NothingToDo, match='no harmonized scan in the output folder') as caught:
        chosen_records(make_settings(participant_label=['zz']), [])
    assert 'Run the participant level first' in caught.value.fix


def test_the_group_level_logs_what_it_did(group, make_data_set, tmp_path, capsys):
    make_data_set(tmp_path / 'bids', {'01': 'x', '99': 'x'})
    said = group(log_json=True)
    (log_dir,) = (tmp_path / 'out' / 'logs').glob('*_*/')
    events = read_events(log_dir / 'events.jsonl')
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == events
    assert [event['event'] for event in events[:2]] == ['run_started', 'plan']
    assert events[0]['level'] == 'group'
    assert sorted(events[1]['scans']) == sorted(SCANS)
    missing = [event['scan'] for event in events if event['event'] == 'scan_left_out']
    assert 'sub-99_T1w' in missing
    written = [event['file'] for event in events if event['event'] == 'report_written']
    assert str(tmp_path / 'out' / 'group.html') in written
    assert (events[-1]['event'], events[-1]['exit_code']) == ('run_finished', 0)
    summary = json.loads((log_dir / 'summary.json').read_text())
    assert summary['counts'] == events[-1]['counts']
    assert (summary['counts']['done'], summary['counts']['left_out']) == (len(SCANS), len(missing))
    log = [line.split('  ', 1)[1] for line in (log_dir / 'run.log').read_text().splitlines()]
    assert [line for line in said.splitlines() if line not in log] == []


def test_a_group_level_without_results_leaves_no_log(make_settings, tmp_path, capsys):
    with pytest.raises(NothingToDo):
        run_group(make_settings(analysis_level='group', log_json=True), Console(quiet=True))
    events = [json.loads(line)['event'] for line in capsys.readouterr().out.splitlines()]
    assert events == ['run_started', 'run_interrupted']
    assert not (tmp_path / 'out').exists()


def volumes(name: str, index: int) -> dict[str, object]:
    """Return the record of a scan whose volumes depend on its site and the age of its person."""
    import numpy as np

    rng = np.random.default_rng(index)
    site, age = index % 2, 30 + index
    measures = {
        which: {
            f'volume_{tissue}_ml': float(600 - age + shift * site + rng.normal(0, 8))
            for tissue, shift in (('gm', 90.0), ('wm', -60.0), ('csf', 40.0))
        }
        for which in ('before', 'after')
    }
    return {**record_of(name), 'site': 'AB'[site], 'measures': {**measures, 'change': {}}}


@pytest.fixture
def measured_group(tmp_path, make_settings, monkeypatch):
    """Return a function that runs the group level on people of two sites, and gives what it returned."""
    from bidsharm.workflows import feature_tables

    monkeypatch.setattr(feature_tables, 'GROUP_PERMUTATIONS', 3)
    names = [f'sub-{i:02d}_T1w' for i in range(30)]
    for index, name in enumerate(names):
        folder = tmp_path / 'out' / name.split('_')[0] / 'anat'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{name.removesuffix("_T1w")}_desc-T1w_qc.json').write_text(
            json.dumps(volumes(name, index))
        )

    def run(**values: object) -> Path:
        settings = make_settings(analysis_level='group', **values)
        people = [f'sub-{i:02d}\t{30 + i}' for i in range(30)]
        settings.bids_dir.mkdir(exist_ok=True)
        (settings.bids_dir / 'participants.tsv').write_text(
            '\n'.join(['participant_id\tage', *people]) + '\n'
        )
        assert run_group(settings, Console(file=io.StringIO(), width=300)) == ExitCode.OK
        return settings.output_dir

    return run


def test_volumes_are_harmonized_as_a_table_where_asked_for(measured_group):
    out = measured_group(table_harmonizer='combat', table_keep='age')
    before, after = (
        list(csv.DictReader((out / f'group_T1w{which}.tsv').open(), delimiter='\t'))
        for which in ('', '_desc-harmonized')
    )

    def apart(rows: list[dict[str, str]], column: str) -> float:
        means = [[float(r[column]) for r in rows if r['site'] == site] for site in 'AB']
        return abs(sum(means[0]) / len(means[0]) - sum(means[1]) / len(means[1]))

    assert apart(before, 'after_volume_gm_ml') > 70
    assert apart(after, 'after_volume_gm_ml') < 10
    assert [r['before_volume_gm_ml'] for r in after] == [r['before_volume_gm_ml'] for r in before]
    record = json.loads((out / 'group_T1w_desc-harmonized.json').read_text())['Harmonization']
    assert record['Features'] == [f'after_volume_{tissue}_ml' for tissue in ('gm', 'wm', 'csf')]
    assert record['Kept'] == 'age'
    page = (out / 'group.html').read_text()
    assert 'volumes harmonized as a table' in page
    assert 'images, then features (combat)' in page
    assert 'href="group_T1w_desc-harmonized.html"' in page


def test_a_run_without_removes_the_harmonized_table_of_an_earlier_one(measured_group):
    out = measured_group(table_harmonizer='combat')
    assert (out / 'group_T1w_desc-harmonized.tsv').is_file()
    measured_group()
    assert not list(out.glob('group_*_desc-harmonized.*'))
    assert 'as a table' not in (out / 'group.html').read_text()


def test_what_is_impossible_is_said_on_the_page(group, measured_group, tmp_path):
    page = tmp_path / 'out' / 'group.html'
    group(table_harmonizer='combat', contrasts=['T2w'])
    assert 'No volumes were measured.' in page.read_text()
    measured_group(table_harmonizer='combat', participant_label=[f'{i:02d}' for i in range(4, 30, 2)])
    assert 'combat needs scans of at least two sites' in page.read_text()
    measured_group(table_harmonizer='longcombat', participant_label=[f'{i:02d}' for i in range(4, 30)])
    assert 'longcombat needs people with several visits' in page.read_text()


@pytest.mark.parametrize(
    ('values', 'where'),
    [
        ({'table_harmonizer': 'robust'}, '--table-harmonizer'),
        ({'table_harmonizer': 'comba'}, '--table-harmonizer'),
        ({'table_harmonizer': 'combat', 'table_keep': 'f(x)'}, '--table-keep'),
        ({'table_keep': 'age'}, '--table-keep'),
    ],
)
def test_what_is_wrong_with_the_tables_ends_the_run_at_once(group, values, where):
    with pytest.raises(UsageError) as caught:
        group(**values)
    assert caught.value.where == where
