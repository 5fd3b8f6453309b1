"""Records on disk that somebody else may have written: what they say must not lead out of the output folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bidsharm.workflows.reporting import records_of, report_group, report_subject


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / 'out'
    folder.mkdir()
    return folder


@pytest.fixture
def keep(out) -> Callable[..., Path]:
    """Return a function that writes a record of sub-01, true but for what is given."""

    def write(name: str = 'sub-01_desc-T1w_qc.json', **more: Any) -> Path:
        path = out / 'sub-01/anat' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            'subject': '01', 'session': None, 'scan': 'sub-01_T1w', 'contrast': 'T1w', 'site': 'north', 'verdict': 'pass',
            'figures': {'mask': 'sub-01/figures/sub-01_desc-mask.png'},
            'outputs': {'sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz': {}},
        }  # fmt: skip
        path.write_text(json.dumps({**record, **more}))
        return path

    return write


@pytest.fixture
def picture() -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(path)

    return write


def page(out: Path) -> str:
    return report_subject(out, '01', methods={}).read_text(encoding='utf-8')


def test_a_record_as_a_run_writes_it_counts(keep, out, picture):
    picture(out / 'sub-01/figures/sub-01_desc-mask.png')
    keep()
    assert [record['scan'] for record in records_of(out)] == ['sub-01_T1w']
    assert 'data:image/png' in page(out)


def test_labels_may_have_a_plus_and_lists_may_be_missing(out):
    path = out / 'sub-a+1/anat/sub-a+1_desc-FLAIR_qc.json'
    path.parent.mkdir(parents=True)
    path.write_text('{"subject": "a+1", "scan": "sub-a+1_FLAIR", "contrast": "FLAIR", "verdict": "pass"}')
    assert len(records_of(out)) == 1


def test_links_inside_the_output_folder_are_followed(keep, out, picture):
    """Data managers keep the content of files in a folder of their own and link to it."""
    picture(out / '.store/content.png')
    figure = out / 'sub-01/figures/sub-01_desc-mask.png'
    figure.parent.mkdir(parents=True)
    figure.symlink_to('../../.store/content.png')
    keep()
    assert 'data:image/png' in page(out)


def test_an_output_folder_that_is_a_link_is_no_way_out(keep, out, tmp_path):
    keep()
    (tmp_path / 'link').symlink_to(out)
    assert len(records_of(tmp_path / 'link')) == 1


@pytest.mark.parametrize('way', ['above', 'absolute', 'by a link'])
def test_a_picture_outside_the_output_folder_is_not_shown(way, keep, out, tmp_path, picture):
    secret = tmp_path / 'secret.png'
    picture(secret)
    (out / 'link').symlink_to(tmp_path)
    name = {'above': '../secret.png', 'absolute': str(secret), 'by a link': 'link/secret.png'}[way]
    keep(figures={'mask': name})
    assert records_of(out, '01') == []
    assert 'data:image/png' not in page(out)


HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.mark.parametrize(
    'wrong',
    [
        {'contrast': f'T1w_{HOSTILE}'},
        {'contrast': '../T1w'},
        {'contrast': 'bold'},
        {'contrast': ['T1w']},
        {'subject': HOSTILE},
        {'subject': '../01'},
        {'subject': '01\n'},
        {'subject': ''},
        {'subject': 1},
        {'outputs': {'../elsewhere.nii.gz': {}}},
        {'outputs': {'/etc/hosts': {}}},
        {'outputs': 'sub-01'},
        {'outputs': ['sub-01']},
        {'figures': ['sub-01/figures/x.png']},
        {'figures': {'mask': None}},
        {'figures': {'mask': 'x\0.png'}},
        {'figures': {'mask': 'x' * 5000}},
    ],
    ids=lambda wrong: repr(wrong)[:40],
)
def test_a_record_that_says_what_no_run_writes_is_left_out_alone(wrong, keep, out):
    good = keep()
    keep('sub-01_desc-bad_qc.json', scan='sub-01_bad', **wrong)
    records = records_of(out)
    assert [record['scan'] for record in records] == ['sub-01_T1w']
    before = {path.name for path in out.iterdir()}
    assert {path.name for path in report_group(out, records, title='x')} == {'group.html', 'group_T1w.tsv'}
    assert {path.name for path in out.iterdir()} - before == {'group.html', 'group_T1w.tsv', 'group_T1w.json'}
    assert 'sub-01_bad' not in page(out)
    good.unlink()
    assert records_of(out) == []


def test_half_a_surrogate_pair_becomes_a_question_mark(keep, out):
    """It cannot be written anywhere; the record and the page can."""
    keep(figures={'mask': '\ud800.png'}, site='\udfff')
    (record,) = records_of(out)
    assert (record['figures'], record['site']) == ({'mask': '?.png'}, '?')
    assert 'sub-01_T1w' in page(out)


def test_what_is_left_out_is_named_in_the_log(keep, out, caplog):
    path = keep(contrast='bold')
    records_of(out)
    assert str(path) in caplog.text
