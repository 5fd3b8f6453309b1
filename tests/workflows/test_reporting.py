"""From records on disk to pages and tables."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bidsharm.workflows import participant
from bidsharm.workflows.base import Options
from bidsharm.workflows.group import run_group
from bidsharm.workflows.logs import Screen
from bidsharm.workflows.planning import Plan
from bidsharm.workflows.reporting import _tsv, records_of, report_group, report_subject
from bidsharm.workflows.summary import Outcome, show_outcome
from rich.console import Console

from bidsharm.bids.boilerplate import Boilerplate
from bidsharm.bids.query import Selection
from bidsharm.errors import ExitCode, NothingToDo, NotServed, ScanError
from bidsharm.reports.subject import ErrorEntry

HOSTILE = '"\'><script>alert(1)</script><img src=x onerror=alert(2)> & [red]{{ 7*7 }}'
METHODS = Boilerplate('We harmonized.\n\nAnd looked.', ('nipype',), ('A paper', '10.1/x')).to_dict(
    {'model digest': 'abc123'}
)


def record(name: str, *, site: str = 'north', verdict: str = 'pass', **more: Any) -> dict[str, Any]:
    """Return what the QC step writes about a scan, as far as the reports read it."""
    *entities, contrast = name.split('_')
    labels = dict(item.split('-') for item in entities)
    share = np.linspace(0, 1, 101)
    side = {'volume_gm_ml': 650.0, 'volume_wm_ml': 480.25, 'volume_csf_ml': 1 / 3, 'p90': 0.9}
    check = {
        'name': 'dice_gm', 'label': 'Overlap', 'value': 0.97, 'unit': '', 'warn': 0.9, 'fail': 0.8, 'direction': 'min',
        'verdict': verdict, 'meaning': 'How much stayed.',
    }  # fmt: skip
    density = {'edges': np.linspace(0, 1, 33).tolist(), 'density': [1.0] * 32}
    return {
        'subject': labels['sub'], 'session': labels.get('ses'), 'scan': name, 'contrast': contrast, 'site': site,
        'harmonizer': {'name': 'robust', 'title': 'Robust', 'target': 'canonical', 'device': 'cpu'},
        'verdict': verdict, 'checks': [check],
        'measures': {'before': side, 'after': {**side, 'p90': None}, 'change': {'p95_abs': 0.04}},
        'quantiles': {'before': (700 * share).tolist(), 'after': share.tolist(), 'target': None},
        'histogram': {'before': density, 'after': density, 'target': None},
        'warnings': [], 'notes': {}, 'version': '0', 'figures': {}, 'outputs': {}, **more,
    }  # fmt: skip


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / 'out'
    folder.mkdir()
    return folder


@pytest.fixture
def keep(out) -> Callable[..., None]:
    """Return a function that writes records where a run would."""

    def write(*records: dict[str, Any]) -> None:
        for item in records:
            *entities, contrast = item['scan'].split('_')
            folders = [entity for entity in entities if entity.startswith(('sub-', 'ses-'))]
            path = out.joinpath(*folders, 'anat', '_'.join([*entities, f'desc-{contrast}_qc.json']))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(item))

    return write


def words(page: Path) -> str:
    """Return the text that a reader sees."""

    class Reader(HTMLParser):
        text, hidden = '', False

        def handle_starttag(self, tag, attrs):
            self.hidden = tag in ('script', 'style')

        def handle_endtag(self, tag):
            self.hidden = False

        def handle_data(self, data):
            self.text += '' if self.hidden else data

    reader = Reader()
    reader.feed(page.read_text(encoding='utf-8'))
    return ' '.join(reader.text.split())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


# Records.


def test_records_of_one_subject_and_of_all(keep, out):
    names = ['sub-1_T1w', 'sub-10_T1w', 'sub-1_ses-2_T1w', 'sub-1_ses-1_T2w', 'sub-1_T2w']
    keep(*map(record, names))
    (out / 'sub-1/anat/sub-1_desc-FLAIR_qc.json').write_text('{"cut')
    (out / 'sub-1/anat/sub-1_desc-PDw_qc.json').write_text('[]')
    (out / 'sub-1/anat/.tmp-x-sub-1_desc-PDw_qc.json.part').write_text('{}')
    assert [item['scan'] for item in records_of(out, '1')] == [
        'sub-1_T1w', 'sub-1_T2w', 'sub-1_ses-1_T2w', 'sub-1_ses-2_T1w'
    ]  # fmt: skip
    assert [item['scan'] for item in records_of(out)] == sorted(names)
    assert records_of(out, '2') == []
    assert records_of(out / 'gone') == []


# The page of a subject.


def test_page_of_a_subject(keep, out):
    keep(
        record(
            'sub-01_ses-1_T1w',
            outputs={'sub-01/ses-1/anat/x.nii.gz': {}},
            warnings=['A doubt.'],
            methods=METHODS,
        ),
        record('sub-01_ses-2_T1w', verdict='warn', methods=METHODS),
        record('sub-02_T1w'),
    )
    page = report_subject(
        out, '01', methods={},
        errors=[ErrorEntry('sub-01_ses-3_T1w', 'The file is cut off.', 'anat/x.nii.gz', 'Copy it again.', 'Trace')],
        left_out=[NotServed('Not handled.', where='sub-01_FLAIR')],
    )  # fmt: skip
    assert page == out / 'sub-01.html'
    text = words(page)
    for part in (
        'sub-01_ses-1_T1w', 'sub-01_ses-2_T1w', 'A doubt.', 'The file is cut off.', 'Copy it again.', 'sub-01_FLAIR',
        'Not handled.', 'abc123', 'We harmonized.', 'A paper',
    ):  # fmt: skip
        assert part in text, part
    assert 'sub-02' not in text


def test_a_result_tells_how_it_was_made_whatever_run_writes_the_page(keep, out):
    other = Boilerplate('We did otherwise.', (), ('Another paper', '')).to_dict({'model digest': 'def456'})
    keep(
        record('sub-01_ses-1_T1w', methods=METHODS),
        record('sub-01_ses-2_T1w', methods=other),
        record('sub-01_ses-3_T1w'),
        record('sub-01_ses-4_T1w', methods={'text': 3, 'references': 7, 'provenance': ['x']}),
    )
    now = Boilerplate('We do as never before.', (), ('A new paper', '')).to_dict({'model digest': 'now'})
    text = words(report_subject(out, '01', methods=now))
    for part in (
        'sub-01_ses-1_T1w: We harmonized.', 'sub-01_ses-2_T1w: We did otherwise.', 'Another paper', 'abc123 / def456',
        'sub-01_ses-3_T1w: How this was made was not recorded.',
    ):  # fmt: skip
        assert part in text, part
    assert 'never before' not in text
    assert 'A new paper' not in text
    assert 'We do as never before.' in words(report_subject(out, '02', methods=now)), 'no result yet'


def test_scan_that_failed_now_is_not_shown_as_it_was(keep, out):
    """A record of an earlier run is no result of this one."""
    keep(record('sub-01_T1w', warnings=['An old doubt.']))
    error = ErrorEntry('sub-01_T1w', 'It failed today.')
    text = words(report_subject(out, '01', methods=METHODS, errors=[error]))
    assert 'It failed today.' in text
    assert 'An old doubt.' not in text


def test_page_without_any_scan(out):
    page = report_subject(out, '01', methods=METHODS)
    assert 'sub-01' in words(page)


def test_picture_that_is_gone_is_not_linked(keep, out):
    from PIL import Image

    figures = out / 'sub-01/figures'
    figures.mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(figures / 'mask.png')
    keep(
        record(
            'sub-01_T1w',
            figures={'mask': 'sub-01/figures/mask.png', 'registration': 'sub-01/figures/gone.png'},
        )
    )
    html = report_subject(out, '01', methods=METHODS).read_text()
    assert html.count('data:image/png') == 1
    assert 'gone.png' not in html


def test_hostile_words_are_shown_and_not_run(keep, out):
    keep(
        record(
            'sub-01_T1w',
            site=HOSTILE,
            warnings=[HOSTILE],
            notes={HOSTILE: HOSTILE},
            outputs={HOSTILE: {}},
            methods={'text': HOSTILE, 'references': [HOSTILE], 'provenance': {HOSTILE: HOSTILE}},
        ),
        record('sub-01_T2w', harmonizer={'name': HOSTILE, 'title': HOSTILE, 'target': HOSTILE}),
    )
    errors = [ErrorEntry(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)]
    pages = [
        report_subject(
            out, '01', methods={}, errors=errors, left_out=[ScanError(HOSTILE, where=HOSTILE)],
        ),
        report_group(out, records_of(out), title=HOSTILE, failed=errors)[0],
    ]  # fmt: skip
    for page in pages:
        html = page.read_text(encoding='utf-8')
        assert '<script>alert' not in html
        assert '<img src=x' not in html
        assert '<script>alert(1)</script>' in words(page)
        assert '{{ 7*7 }}' in words(page)


def plan_of(make_raw, make_method, root: Path, names: list[str], left_out: list[ScanError]) -> Plan:
    scans = tuple(make_raw(root, name) for name in names)
    return Plan(Selection(scans, tuple(left_out)), make_method(), Options(), ())


def test_left_out_scans_stand_on_the_page_of_their_subject_only(
    make_raw, make_method, make_settings, tmp_path
):
    left_out = [
        NotServed('Of ten.', where='sub-10_T2w'),
        NotServed('Of one.', where='sub-1_T2w'),
        ScanError('Of one, too.', where='sub-1/anat/sub-1_PDw.nii'),
    ]
    plan = plan_of(make_raw, make_method, tmp_path / 'bids', ['sub-1_T1w', 'sub-10_T1w'], left_out)
    settings = make_settings()
    settings.output_dir.mkdir()
    outcome = Outcome(left_out=left_out)
    participant._report(('1', '10'), settings, outcome, plan, METHODS)
    assert [path.name for path in outcome.reports] == ['sub-1.html', 'sub-10.html']
    one, ten = map(words, outcome.reports)
    assert 'Of one.' in one
    assert 'Of one, too.' in one
    assert 'Of ten.' in ten
    assert 'Of one' not in ten
    assert 'Of ten.' not in one


def test_report_that_cannot_be_written_costs_its_subject_only(
    make_raw, make_method, make_settings, tmp_path, monkeypatch
):
    plan = plan_of(make_raw, make_method, tmp_path / 'bids', ['sub-1_T1w', 'sub-2_T1w'], [])
    settings = make_settings()
    settings.output_dir.mkdir()
    real = report_subject

    def fail_for_one(root, subject, **rest):
        if subject == '1':
            raise OSError('the disk is full')
        return real(root, subject, **rest)

    monkeypatch.setattr(participant, 'report_subject', fail_for_one)
    outcome = Outcome()
    participant._report(('1', '2'), settings, outcome, plan, METHODS)
    assert [path.name for path in outcome.reports] == ['sub-2.html']
    (failure,) = outcome.failures
    assert failure.scan == 'sub-1'
    assert 'the disk is full' in failure.what
    assert '--reports-only' in failure.fix
    assert outcome.exit_code == ExitCode.SCAN_FAILED


# The group.


def test_one_table_for_each_contrast(keep, out):
    keep(
        *(
            record(f'sub-{label}_{contrast}', site=site)
            for label, site in (('02', 'south'), ('01', 'north'))
            for contrast in ('T1w', 'FLAIR')
        ),
        record('sub-03_ses-1_T1w', site=''),
    )
    (out / 'sub-01.html').touch()
    written = report_group(out, records_of(out), title='A study of heads')
    assert [path.name for path in written] == ['group.html', 'group_FLAIR.tsv', 'group_T1w.tsv']
    rows = table(out / 'group_T1w.tsv')
    assert [(row['participant_id'], row['session_id'], row['site']) for row in rows] == [
        ('sub-01', 'n/a', 'north'), ('sub-02', 'n/a', 'south'), ('sub-03', 'ses-1', 'n/a'),
    ]  # fmt: skip
    assert len(table(out / 'group_FLAIR.tsv')) == 2
    assert {row['contrast'] for row in rows} == {'T1w'}
    for contrast in ('T1w', 'FLAIR'):
        dictionary = json.loads((out / f'group_{contrast}.json').read_text())
        assert list(dictionary) == list(table(out / f'group_{contrast}.tsv')[0])
    assert rows[0]['before_volume_csf_ml'] == '0.333333'
    assert rows[0]['before_volume_wm_ml'] == '480.25'
    assert rows[0]['after_p90'] == 'n/a'
    assert all(cell for row in rows for cell in row.values())
    html = (out / 'group.html').read_text()
    assert 'A study of heads' in words(out / 'group.html')
    # A page that is not there is not linked.
    assert re.findall(r'href="(sub-[^"]+)"', html).count('sub-01.html') >= 1
    assert 'sub-02.html' not in html


def test_tables_are_the_same_when_written_again(keep, out):
    keep(record('sub-01_T1w'), record('sub-02_T1w', verdict='fail'))
    report_group(out, records_of(out), title='x')
    before = {path.name: path.read_bytes() for path in out.glob('group*')}
    report_group(out, records_of(out), title='x')
    assert {path.name: path.read_bytes() for path in out.glob('group*')} == before
    assert not list(out.glob('.tmp-*'))


@pytest.mark.parametrize(
    'label', ['two\twords', 'two\nlines', 'two\rlines', 'two\r\nlines', 'a "quoted" one', HOSTILE]
)
def test_odd_words_do_not_break_a_table(label, keep, out):
    keep(record('sub-01_T1w', site=label), record('sub-02_T1w'))
    report_group(out, records_of(out), title='x')
    text = (out / 'group_T1w.tsv').read_text(encoding='utf-8')
    # As a spreadsheet or pandas would split it: any line ending ends a row.
    lines = [line.split('\t') for line in text.splitlines()]
    assert [len(line) for line in lines] == [len(lines[0])] * 3


def test_cells():
    rows = [{'a': None, 'b': '', 'c': 0, 'd': 0.0, 'e': 1234567.891, 'f': 1e-9, 'g': False, 'h': 'x'}, {}]
    columns = list('abcdefgh')
    lines = [line.split('\t') for line in _tsv(rows, columns).splitlines()]
    assert lines[0] == columns
    assert lines[1] == ['n/a', 'n/a', '0', '0', '1.23457e+06', '1e-09', 'False', 'x']
    assert lines[2] == ['n/a'] * 8
    assert _tsv([], ['a', 'b']) == 'a\tb\n'


def test_group_level(keep, out, make_settings):
    settings = make_settings(analysis_level='group')
    settings.bids_dir.mkdir()
    (settings.bids_dir / 'dataset_description.json').write_text('{"Name": "Heads of the world"}')
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(NothingToDo, match='no harmonized scan'):
        run_group(settings, console)
    keep(record('sub-01_T1w'), record('sub-01_T2w'), record('sub-02_T1w'))
    assert run_group(settings, console) == ExitCode.OK
    assert '3 scans of 2 subjects' in console.file.getvalue()
    assert 'Heads of the world' in words(out / 'group.html')


def test_group_names_the_scans_without_a_result(keep, out, make_settings, make_data_set):
    settings = make_settings(analysis_level='group')
    make_data_set(settings.bids_dir, {'01': 'north', '02': 'south'})
    keep(record('sub-01_T1w'))
    console = Console(file=io.StringIO(), width=300)
    assert run_group(settings, console) == ExitCode.OK
    assert 'missing   sub-02_T1w' in console.file.getvalue()
    assert 'sub-01_T1w:' not in console.file.getvalue()
    assert 'There is no harmonized image of it' in words(out / 'group.html')


def test_dry_run_of_the_group_writes_nothing(keep, out, make_settings):
    keep(record('sub-01_T1w'))
    before = sorted(out.rglob('*'))
    console = Console(file=io.StringIO())
    assert run_group(make_settings(analysis_level='group', dry_run=True), console) == ExitCode.OK
    assert sorted(out.rglob('*')) == before
    assert '1 scan of 1 subject' in console.file.getvalue()


def test_group_of_some_participants(keep, out, make_settings):
    keep(record('sub-01_T1w'), record('sub-02_T1w'), record('sub-03_T1w'))
    settings = make_settings(analysis_level='group', participant_label=['01', '03'])
    run_group(settings, Console(file=io.StringIO()))
    assert [row['participant_id'] for row in table(out / 'group_T1w.tsv')] == ['sub-01', 'sub-03']


def test_record_that_is_not_ours_does_not_stop_the_group(keep, out, make_settings):
    """Another program's JSON may have a verdict, too."""
    settings = make_settings(analysis_level='group')
    keep(record('sub-01_T1w'))
    (out / 'sub-01/anat/sub-01_desc-other_qc.json').write_text('{"verdict": "fine"}')
    console = Console(file=io.StringIO(), width=200)
    assert run_group(settings, console) == ExitCode.OK
    assert len(table(out / 'group_T1w.tsv')) == 1


# The summary on the screen.


def test_summary_counts_and_tells_how_to_go_on(make_settings, tmp_path):
    outcome = Outcome(
        verdicts={'sub-01_T1w': 'pass', 'sub-02_T1w': 'warn', 'sub-03_T1w': 'fail', 'sub-04_T1w': 'pass'},
        resumed=['sub-04_T1w'],
        failures=[
            ErrorEntry('sub-06_ses-1_T1w', 'It broke [bold].', fix='Mend it.'),
            ErrorEntry('sub-05_T1w', 'It broke.'),
            ErrorEntry('sub-05_T2w', 'It broke.'),
        ],
        left_out=[NotServed('Not handled [/red].', where='sub-01_FLAIR')],
        reports=[tmp_path / 'sub-01.html'],
    )
    console = Console(file=io.StringIO(), width=300)
    show_outcome(
        outcome,
        Screen(console),
        rerun=['bidsharm', 'a b', '--participant-label', '05', '06'],
        log_dir=tmp_path / 'logs',
    )
    said = console.file.getvalue()
    assert '4 scans harmonized: 2 pass, 1 warn, 1 fail the anatomy check; 1 was done before.' in said
    assert 'sub-06_ses-1_T1w: It broke [bold]. Mend it.' in said
    assert 'Not handled [/red].' in said
    assert "Run just those again:\n  bidsharm 'a b' --participant-label 05 06\n" in said
    assert str(tmp_path / 'logs') in said
    assert str(tmp_path / 'sub-01.html') in said


def test_summary_of_a_run_without_trouble(make_settings, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    show_outcome(Outcome(verdicts={'sub-01_T1w': 'pass'}), Screen(console), log_dir=tmp_path)
    said = console.file.getvalue()
    assert '1 scan harmonized: 1 pass' in said
    assert 'again' not in said
    assert 'FAILED' not in said
