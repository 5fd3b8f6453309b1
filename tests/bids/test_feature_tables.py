"""Tables of features: what is read from ours, FreeSurfer's, MRIQC's and others', and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bidsharm.bids.feature_tables import (
    Choice,
    feature_table,
    harmonized_text,
    out_path,
    people_of,
    read_participants_table,
    read_table,
    write_harmonized,
)
from bidsharm.errors import UsageError

FREESURFER = (
    'Measure:volume\tLeft-Lateral-Ventricle\tLeft-Putamen\nsub-01_ses-1\t7000.1\t5000\nsub-02\t8000\t5100.5\n'
)
MRIQC = 'bids_name\tcjv\tsize_x\nsub-01_ses-1_T1w\t0.4\t256\nsub-02_T1w\t0.5\t256\n'
OURS = (
    'participant_id\tsession_id\tscan\tsite\tverdict\tcheck_x\tbefore_volume_gm_ml\tafter_volume_gm_ml\n'
    'sub-01\tses-1\tsub-01_ses-1_T1w\tA\tpass\t1\t700\t710\nsub-02\tn/a\tsub-02_T1w\tB\tpass\t2\t720\tn/a\n'
)
PEOPLE = 'participant_id\tsession_id\tsite\tage\tsex\n01\t1\tA\t30\tF\nsub-01\tn/a\tZ\t31\tF\nsub-02\t\tB\t40\tn/a\n'


def saved(folder: Path, text: str, name: str = 'table.tsv') -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize('text', [FREESURFER, MRIQC, OURS])
def test_rows_know_whose_they_are(tmp_path: Path, text: str) -> None:
    people, sessions, names = people_of(read_table(saved(tmp_path, text)))
    assert people == ['sub-01', 'sub-02']
    assert sessions == ['ses-1', '']
    assert names == ['sub-01_ses-1', 'sub-02']


@pytest.mark.parametrize(
    ('text', 'features'),
    [
        (FREESURFER, ('Left-Lateral-Ventricle', 'Left-Putamen')),
        (MRIQC, ('cjv', 'size_x')),
        (OURS, ('after_volume_gm_ml',)),
    ],
)
def test_columns_of_numbers_are_features(tmp_path: Path, text: str, features: tuple[str, ...]) -> None:
    people = read_participants_table(saved(tmp_path, PEOPLE, 'participants.tsv').parent)
    found = feature_table(read_table(saved(tmp_path, text)), Choice(kept=('age', 'sex'), participants=people))
    assert found.features == features
    assert found.sites == ('A', 'B')
    assert found.covariates['age'].tolist() == [30, 40]
    assert found.covariates['sex'].tolist() == ['F', '']
    assert found.values.shape == (2, len(features))


def test_the_table_s_own_columns_go_before_those_of_people(tmp_path: Path) -> None:
    people = read_participants_table(saved(tmp_path, PEOPLE.replace('\tB\t', '\tX\t'), 'people.tsv'))
    assert feature_table(read_table(saved(tmp_path, OURS)), Choice(participants=people)).sites == ('A', 'B')


def test_commas_quotes_and_marks_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / 'a.csv'
    path.write_bytes(b'\xef\xbb\xbfparticipant_id,"site, place",x\r\n01,"A, b",1\r\n02,C,2\r\n')
    table = read_table(path)
    assert table.columns == ('participant_id', 'site, place', 'x')
    found = feature_table(table, Choice(site=('site, place',)))
    assert found.sites == ('A, b', 'C')
    assert found.people == ('sub-01', 'sub-02')
    text = harmonized_text(table, ('x',), found.values, found.values + 0.5)
    assert text == 'participant_id,"site, place",x\n01,"A, b",1.5\n02,C,2.5\n'


def test_sites_can_be_of_several_columns_and_missing(tmp_path: Path) -> None:
    text = 'participant_id\tmaker\tfield\tx\n1\tS\t3\t1\n2\tG\tn/a\t2\n3\t\t3\t4\n'
    found = feature_table(read_table(saved(tmp_path, text)), Choice(site=('maker', 'field')))
    assert found.sites == ('S-3', '', '')


def test_rows_of_the_same_visit_are_told_apart(tmp_path: Path) -> None:
    text = 'participant_id\tsite\tx\n1\tA\t1\n1\tA\t2\n'
    assert people_of(read_table(saved(tmp_path, text)))[2] == ['sub-1', 'sub-1 (2)']


def test_only_what_changed_is_written_anew(tmp_path: Path) -> None:
    text = 'participant_id\tsite\tx\ty\tnote\n1\tA\t1.50\tn/a\thello\n2\tB\t2.0\t3e0\t\n'
    table = read_table(saved(tmp_path, text))
    before = np.array([[1.5, np.nan], [2, 3.0]])
    after = np.array([[1.5, np.nan], [2.25, 1 / 3]])
    lines = harmonized_text(table, ('x', 'y'), before, after).splitlines()
    assert lines == [text.splitlines()[0], '1\tA\t1.50\tn/a\thello', '2\tB\t2.25\t0.3333333333\t']


def test_the_dictionary_goes_on(tmp_path: Path) -> None:
    path = saved(tmp_path, MRIQC, 'group_T1w.tsv')
    path.with_suffix('.json').write_text(
        json.dumps({'cjv': {'Description': 'Joint variation.', 'Units': '1'}})
    )
    out = out_path(read_table(path), tmp_path / 'out')
    assert out.name == 'group_T1w_desc-harmonized.tsv'
    write_harmonized(read_table(path), out, MRIQC, ('cjv',), {'Method': 'combat'})
    content = json.loads(out.with_suffix('.json').read_text())
    assert content['cjv'] == {'Description': 'Joint variation. Harmonized by combat.', 'Units': '1'}
    assert 'size_x' in content
    assert content['Harmonization'] == {'Method': 'combat'}
    with pytest.raises(UsageError, match='harmonized one'):
        out_path(read_table(out), tmp_path)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a\tb\n', 'no rows'),
        ('', 'no rows'),
        ('a\ta\n1\t2\n', 'same name: a'),
        ('a\tb\n1\t2\n1\n', 'Line 3 has 1 cells'),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = saved(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        read_table(path)
    assert caught.value.where == str(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='cannot be read'):
        read_table(tmp_path / 'none.tsv')
    (tmp_path / 'binary.tsv').write_bytes(b'\xff\xfe\x00\x01')
    with pytest.raises(UsageError, match='no text'):
        read_table(tmp_path / 'binary.tsv')
    with pytest.raises(UsageError, match='participant_id'):
        read_participants_table(saved(tmp_path, 'a\tb\n1\t2\n'))


@pytest.mark.parametrize(
    ('choice', 'where', 'message'),
    [
        ({}, 'table', 'no column of sites'),
        ({'site': ('sitee',)}, '--site', 'no column "sitee"'),
        ({'site': ('centre',), 'kept': ('agee',)}, '--keep', r'no column "agee".*'),
        ({'site': ('centre',), 'features': ('zz*',)}, '--features', '"zz.*" fits no column of numbers'),
        ({'site': ('centre',), 'features': ('note',)}, '--features', 'holds no numbers'),
        ({'site': ('centre',), 'kept': ('x',)}, 'table', 'no column of numbers'),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path: Path, choice: dict, where: str, message: str) -> None:
    table = read_table(saved(tmp_path, 'participant_id\tcentre\tx\tnote\n1\tA\t1\thi\n2\tB\t2\tho\n'))
    with pytest.raises(UsageError, match=message) as caught:
        feature_table(table, Choice(**choice))
    assert where in caught.value.where


def test_people_that_do_not_fit_are_named(tmp_path: Path) -> None:
    people = read_participants_table(saved(tmp_path, 'participant_id\tage\n77\t3\n', 'people.tsv'))
    with pytest.raises(UsageError, match='sub-01 and others are not there'):
        feature_table(read_table(saved(tmp_path, OURS)), Choice(participants=people))


@pytest.mark.parametrize('cell', ['inf', '-', '1,5', '\u22125', 'ERR'])
def test_a_slip_in_a_column_of_numbers_is_told(tmp_path: Path, cell: str) -> None:
    rows = ''.join(f'{n}\t{"AB"[n % 2]}\t{n}\t{cell if n == 3 else n}\tgood\n' for n in range(1, 7))
    table = read_table(saved(tmp_path, 'participant_id\tsite\tx\ty\tnote\n' + rows))
    with pytest.raises(UsageError, match='Column "y" holds numbers') as caught:
        feature_table(table, Choice())
    assert f'"{cell}" in row 3' in caught.value.what
    assert feature_table(table, Choice(features=('x',))).features == ('x',)


def test_a_feature_that_is_named_may_be_missing_everywhere(tmp_path: Path) -> None:
    table = read_table(saved(tmp_path, 'participant_id\tsite\tx\ty[1]\n1\tA\t3\tn/a\n'))
    assert feature_table(table, Choice()).features == ('x',)
    found = feature_table(table, Choice(features=('x', 'y[[]1]')))
    assert found.features == ('x', 'y[1]')
    assert np.isnan(found.values[0, 1])


@pytest.mark.parametrize('name', ['subject_id', 'subject'])
def test_the_column_that_names_people_need_not_be_the_first(tmp_path: Path, name: str) -> None:
    text = f'site\t{name}\tx\nA\tsub-7/ses-2/anat\t1\nA\tsub-8\t2\n'
    people, sessions, _ = people_of(read_table(saved(tmp_path, text)))
    assert (people, sessions) == (['sub-7', 'sub-8'], ['ses-2', ''])


def test_words_that_only_python_takes_for_numbers_are_words(tmp_path: Path) -> None:
    text = 'participant_id\tsite\tx\tv\n1\tA\t1_000\t1\n2\tB\tinf\t2\n'
    assert feature_table(read_table(saved(tmp_path, text)), Choice()).features == ('v',)
