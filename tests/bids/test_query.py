"""Which scans a run is about, whose scanner took them, and which scan each one follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from bidsharm.bids.index import INDEX_FILE, open_layout
from bidsharm.bids.query import read_filter_file, select_scans
from bidsharm.bids.sites import read_participants
from bidsharm.errors import ExitCode, NothingToDo, UsageError

SIEMENS = {
    'Manufacturer': 'Siemens Healthineers',
    'ManufacturersModelName': 'Prisma_fit',
    'MagneticFieldStrength': 3.0,
    'StationName': 'AWP-1',
}


# --- which scans ------------------------------------------------------------------------------------------


def test_every_scan_goes_its_own_way(tree):
    """Sessions, acquisitions, reconstructions, runs and contrasts are different scans."""
    names = [
        'sub-01_ses-a_T1w', 'sub-01_ses-a_acq-hi_T1w', 'sub-01_ses-a_acq-hi_rec-norm_T1w', 'sub-01_ses-a_run-01_T1w',
        'sub-01_ses-a_run-02_T1w', 'sub-01_ses-a_T2w', 'sub-01_ses-a_FLAIR', 'sub-01_ses-a_PDw', 'sub-01_ses-b_T1w', 'sub-02_T1w',
    ]  # fmt: skip
    for name in reversed(names):
        tree.add(name)
    found = tree.select()
    assert sorted(scan.name for scan in found.scans) == sorted(names)
    assert found.subjects == ('01', '02')
    assert [scan.name for scan in found.of_subject('02')] == ['sub-02_T1w']
    assert [scan.name for scan in found.scans] == tree.names(), 'the order is not by chance'
    assert found.left_out == ()


def test_other_folders_contrasts_and_parts_are_no_scans(tree):
    tree.add('sub-01_T1w')
    tree.add('sub-01_part-mag_T2w')
    for part in ('phase', 'real', 'imag'):
        tree.add(f'sub-01_acq-x_part-{part}_T1w')
    tree.add('sub-01_T2star')
    tree.add('sub-01_T1w', folder='derivatives/other/sub-01/anat')
    tree.add('sub-01_T1w', folder='sourcedata/sub-01/anat')
    tree.add('sub-01_desc-preproc_T1w', folder='fmriprep/sub-01/anat')
    tree.add('sub-01_T1w', folder='.hidden/sub-01/anat')
    tree.add('sub-01_acq-f_T1w', folder='sub-01/func')
    tree.add('._sub-01_T1w', folder='sub-01/anat')
    found = tree.select()
    assert [scan.relative for scan in found.scans] == [
        'sub-01/anat/sub-01_T1w.nii.gz',
        'sub-01/anat/sub-01_part-mag_T2w.nii.gz',
    ]
    assert found.left_out == ()


@pytest.fixture
def cohort(tree):
    for subject in ('01', '02', '010'):
        for session in ('a', 'b'):
            for run in ('01', '02'):
                tree.add(f'sub-{subject}_ses-{session}_run-{run}_T1w')
            tree.add(f'sub-{subject}_ses-{session}_T2w')
    return tree


def test_subjects_are_whole_labels(cohort):
    assert {name.split('_')[0] for name in cohort.names(participant_label=['01'])} == {'sub-01'}
    assert {name.split('_')[0] for name in cohort.names(participant_label=['010', '02'])} == {
        'sub-010',
        'sub-02',
    }


def test_sessions_runs_and_contrasts_narrow(cohort):
    assert cohort.names(participant_label=['01'], session_label=['b'], run=['2'], contrasts=['T1w']) == [
        'sub-01_ses-b_run-02_T1w'
    ]
    assert cohort.names(participant_label=['01'], contrasts=['T2w']) == [
        'sub-01_ses-a_T2w',
        'sub-01_ses-b_T2w',
    ]
    runs = cohort.names(run=['1'])
    assert len(runs) == 6
    assert all('_run-01_' in name for name in runs), (
        'run-1 and run-01 are one index; a scan without run is neither'
    )


@pytest.mark.parametrize(
    ('values', 'option', 'there'),
    [
        ({'participant_label': ['01', '99']}, '--participant-label', '01, 010, 02'),
        ({'session_label': ['c']}, '--session-label', 'a, b'),
    ],
)
def test_labels_that_do_not_exist(cohort, values, option, there):
    with pytest.raises(UsageError) as caught:
        cohort.select(**values)
    error = caught.value
    assert error.where == option
    assert error.what == f'Not in the data set: {next(iter(values.values()))[-1]}.'
    assert there in error.fix


def test_folders_above_the_data_set_are_no_sessions(make_tree, tmp_path):
    tree = make_tree(tmp_path / 'ses-9' / 'bids')
    tree.add('sub-01_ses-a_T1w')
    assert tree.names(session_label=['a']) == ['sub-01_ses-a_T1w']
    with pytest.raises(UsageError) as caught:
        tree.select(session_label=['9'])
    assert caught.value.fix == 'There are: a.'


def test_sessions_are_compared_as_numbers(tree):
    tree.add('sub-01_ses-01_T1w')
    tree.add('sub-01_ses-02_T1w')
    assert tree.names(session_label=['1']) == ['sub-01_ses-01_T1w']
    with pytest.raises(UsageError, match=r'Not in the data set: 3\.'):
        tree.select(session_label=['1', '3'])


def test_long_lists_of_labels_are_cut(tree):
    for number in range(20):
        (tree.root / f'sub-{number:02}').mkdir()
    with pytest.raises(UsageError, match='and 8 more'):
        tree.select(participant_label=['x'])


def test_a_label_that_only_looks_like_a_number(tree):
    """'²'.isdigit() is true in Python, int('²') an error."""
    tree.add('sub-01_run-01_T1w')
    with pytest.raises(NothingToDo, match='--run ²'):
        tree.select(run=['²'])


@pytest.mark.parametrize('label', ['a;b', '..', '.*', '01|02', "' OR 1=1", '01/', 'é', ' ', ''])
def test_hostile_labels_are_just_not_there(cohort, label):
    with pytest.raises(UsageError, match='Not in the data set'):
        cohort.select(participant_label=[label])
    with pytest.raises(UsageError, match='Not in the data set'):
        cohort.select(session_label=[label])


def test_what_removed_the_last_scan_is_named(cohort):
    with pytest.raises(NothingToDo, match=r'--run 7 leaves no scan out of 6') as caught:
        cohort.select(participant_label=['01'], run=['7'])
    assert caught.value.exit_code == ExitCode.NOTHING_TO_DO
    assert '01, 02' in caught.value.fix
    with pytest.raises(NothingToDo, match='No FLAIR image'):
        cohort.select(contrasts=['FLAIR'])
    path = cohort.filters({'t1w': {'acquisition': 'x'}})
    with pytest.raises(NothingToDo, match=r'filters\.json'):
        cohort.select(bids_filter_file=path, contrasts=['T1w'])


def test_session_of_another_subject(tree):
    tree.add('sub-01_ses-a_T1w')
    tree.add('sub-02_ses-b_T1w')
    with pytest.raises((NothingToDo, UsageError), match='session-label'):
        tree.select(participant_label=['01'], session_label=['b'])


def test_empty_data_set(tree):
    with pytest.raises(NothingToDo, match='No T1w, T2w, FLAIR, PDw image was found'):
        tree.select()


def test_only_the_subjects_asked_for_are_indexed(cohort):
    """Indexing everything is what makes BIDS Apps start slowly."""
    layout = open_layout(cohort.settings(participant_label=['01']))
    assert layout.get_subjects() == ['01']
    assert sorted(open_layout(cohort.settings()).get_subjects()) == ['01', '010', '02']


def test_kept_index_serves_the_next_run(cohort, tmp_path):
    """An index made for one subject must not hide the others afterwards."""
    index = tmp_path / 'index'
    assert len(cohort.names(participant_label=['01'], bids_database_dir=index)) == 6
    assert index.exists()
    assert len(cohort.names(bids_database_dir=index)) == 18
    layout = open_layout(cohort.settings(bids_database_dir=index))
    assert len(select_scans(cohort.settings(), layout).scans) == 18


def test_kept_index_serves_every_path_to_the_data_set(cohort, tmp_path):
    index, link = tmp_path / 'index', tmp_path / 'a link'
    link.symlink_to(cohort.root)
    for first, second in ((cohort.root, link), (link, cohort.root)):
        shutil.rmtree(index, ignore_errors=True)
        for root in (first, second):
            scans = cohort.select(bids_dir=root, bids_database_dir=index).scans
            assert len(scans) == 18
            assert all(scan.root == root and scan.path.is_relative_to(root) for scan in scans)


def test_index_of_another_data_set_is_refused(cohort, make_tree, tmp_path):
    index = tmp_path / 'index'
    cohort.select(bids_database_dir=index)
    other = make_tree(tmp_path / 'other')
    other.add('sub-01_T1w')
    with pytest.raises(UsageError, match='cannot be used') as caught:
        other.select(bids_database_dir=index)
    assert '--bids-database-dir' in caught.value.where
    assert f'Delete {INDEX_FILE}' in caught.value.fix
    (index / INDEX_FILE).write_bytes(b'no data base at all')
    with pytest.raises(UsageError, match='cannot be used'):
        cohort.select(bids_database_dir=index)


def test_index_that_cannot_be_kept(cohort, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match='cannot be kept') as caught:
        cohort.select(bids_database_dir=tmp_path / 'file' / 'index')
    assert 'can be written' in caught.value.fix


def test_jobs_that_start_together_share_an_index(cohort, tmp_path):
    """None may read what another has half written."""
    index = tmp_path / 'index'
    code = (
        'import sys; from pathlib import Path; from bidsharm.bids.query import select_scans; '
        'from bidsharm.settings import Settings; root, index = map(Path, sys.argv[1:]); '
        'print(len(select_scans(Settings(root, root.parent / "out", bids_database_dir=index)).scans))'
    )
    jobs = [
        subprocess.Popen([sys.executable, '-c', code, str(cohort.root), str(index)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]  # fmt: skip
    assert [job.communicate(timeout=120)[0].strip() for job in jobs] == ['18'] * 3
    assert [path.name for path in index.iterdir()] == [INDEX_FILE]


def test_interrupted_index_does_not_count(cohort, tmp_path, monkeypatch):
    """What stops a job while it makes the index leaves none behind."""
    index = tmp_path / 'index'
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', interrupt)
        with pytest.raises(KeyboardInterrupt):
            cohort.select(bids_database_dir=index)
    assert not (index / INDEX_FILE).exists()
    assert len(cohort.names(bids_database_dir=index)) == 18


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_dry_run_keeps_no_index(cohort, tmp_path):
    index = tmp_path / 'index'
    assert len(cohort.names(dry_run=True, bids_database_dir=index)) == 18
    assert not index.exists()
    index.mkdir()
    assert len(cohort.names(dry_run=True, bids_database_dir=index)) == 18
    assert not list(index.iterdir())


def test_dry_run_reads_the_index_that_is_there(cohort, tmp_path):
    index = tmp_path / 'index'
    cohort.names(bids_database_dir=index)
    (file,) = index.iterdir()
    before = file.read_bytes(), file.stat().st_mtime_ns, index.stat().st_mtime_ns
    cohort.add('sub-03_T1w')  # an index that is kept does not know it
    assert len(cohort.names(dry_run=True, bids_database_dir=index)) == 18
    assert (file.read_bytes(), file.stat().st_mtime_ns, index.stat().st_mtime_ns) == before
    assert list(index.iterdir()) == [file]


@pytest.mark.parametrize(
    'folder', ['func/bids', 'sub-99/bids', 'ses-9/.hidden/derivatives/code', 'my data; ü']
)
def test_where_the_data_set_lies_does_not_matter(make_tree, tmp_path, folder):
    tree = make_tree(tmp_path / folder)
    tree.add('sub-01_T1w')
    tree.add('sub-02_ses-a_T1w')
    assert tree.names() == ['sub-01_T1w', 'sub-02_ses-a_T1w']
    assert tree.names(participant_label=['02']) == ['sub-02_ses-a_T1w']


# --- names that cannot be trusted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'folder'),
    [
        ('sub-01_acq-a b_T1w', 'sub-01/anat'),
        ('sub-01_acq-a;rm_T1w', 'sub-01/anat'),
        ('sub-01_acq-ü_T1w', 'sub-01/anat'),
        ('sub-01_sub-02_T1w', 'sub-01/anat'),
        ('sub-01_run-1_run-2_T1w', 'sub-01/anat'),
        ('ses-1_T1w', 'sub-01/anat'),
        ('sub-02_T1w', 'sub-01/anat'),
        ('sub-01_ses-b_T1w', 'sub-01/ses-a/anat'),
        ('sub-01_T1w', 'sub-01/ses-a/anat'),
        ('sub-01_ses-a_T1w', 'sub-01/anat'),
        ('sub-01_desc-mine_T1w', 'sub-01/anat'),
        ('sub-01_space-MNI_T1w', 'sub-01/anat'),
    ],
)
def test_misnamed_files_are_left_out_by_name(tree, name, folder):
    """They would land in another subject's outputs, or on those of another scan; the others go on."""
    tree.add('sub-03_T1w')
    tree.add(name, folder=folder)
    found = tree.select()
    assert [scan.name for scan in found.scans] == ['sub-03_T1w']
    assert [scan.name for scan in found.structural] == ['sub-03_T1w']
    assert [error.where for error in found.left_out] == [f'{folder}/{name}.nii.gz']


def test_only_misnamed_files(tree):
    tree.add('sub-01_acq-a b_T1w', folder='sub-01/anat')
    with pytest.raises(NothingToDo) as caught:
        tree.select()
    assert 'sub-01/anat/sub-01_acq-a b_T1w.nii.gz' in caught.value.fix


def test_scans_that_would_overwrite_each_other(tree):
    tree.add('sub-01_T1w')
    tree.add('sub-01_T1w', '.nii')
    tree.add('sub-02_acq-Hi_T1w')
    tree.add('sub-02_acq-hi_T1w')
    tree.add('sub-03_T1w')
    found = tree.select()
    assert [scan.name for scan in found.scans] == ['sub-03_T1w']
    assert {error.where for error in found.left_out} == {
        'sub-01/anat/sub-01_T1w.nii',
        'sub-01/anat/sub-01_T1w.nii.gz',
        'sub-02/anat/sub-02_acq-Hi_T1w.nii.gz',
        'sub-02/anat/sub-02_acq-hi_T1w.nii.gz',
    }


def test_links(make_tree, tmp_path):
    """A link within the data set is a scan (annexed data are links); so is a broken one, which fails later alone."""
    tree = make_tree(tmp_path / 'bids')
    elsewhere = tree.add('sub-09_T1w', folder='.git/annex/objects/sub-09/anat')
    (tree.root / 'sub-01/anat').mkdir(parents=True)
    os.symlink(elsewhere, tree.root / 'sub-01/anat/sub-01_T1w.nii.gz')
    os.symlink(tmp_path / 'gone', tree.root / 'sub-01/anat/sub-01_T2w.nii.gz')
    os.symlink(elsewhere.parent.parent, tree.root / 'sub-02')
    found = tree.select()
    assert [scan.relative for scan in found.scans] == [
        'sub-01/anat/sub-01_T1w.nii.gz',
        'sub-01/anat/sub-01_T2w.nii.gz',
    ]
    os.symlink(tree.root, tmp_path / 'link')
    assert [
        scan.name for scan in select_scans(replace(tree.settings(), bids_dir=tmp_path / 'link')).scans
    ] == [
        'sub-01_T1w',
        'sub-01_T2w',
    ]


# --- filter file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['t1w', 'T1w', 'T1W'])
def test_filter_by_contrast(tree, key):
    for name in ('sub-01_acq-x_T1w', 'sub-01_acq-y_T1w', 'sub-01_T1w', 'sub-01_T2w'):
        tree.add(name)
    kept = tree.names(bids_filter_file=tree.filters({key: {'acquisition': 'x'}}))
    assert kept == ['sub-01_acq-x_T1w', 'sub-01_T2w']
    assert tree.names(
        bids_filter_file=tree.filters({key: {'acquisition': ['x', 'y']}}), contrasts=['T1w']
    ) == [
        'sub-01_acq-x_T1w',
        'sub-01_acq-y_T1w',
    ]
    assert tree.names(
        bids_filter_file=tree.filters({key: {'acquisition': 'Query.NONE'}}), contrasts=['T1w']
    ) == ['sub-01_T1w']
    for entry, count in (
        ('Query.ANY', 2),
        ('Query.REQUIRED', 2),
        ('Query.OPTIONAL', 3),
        (['Query.NONE', 'x'], 2),
    ):
        path = tree.filters({key: {'acquisition': entry}})
        assert len(tree.names(bids_filter_file=path, contrasts=['T1w'])) == count, entry


@pytest.mark.parametrize('run', [1, '1', '01', [1]])
def test_filter_by_run(tree, run):
    tree.add('sub-01_run-01_T1w')
    tree.add('sub-01_run-02_T1w')
    assert tree.names(bids_filter_file=tree.filters({'t1w': {'run': run}})) == ['sub-01_run-01_T1w']


def test_filter_file_of_fmriprep(tree):
    """fMRIPrep's files say datatype and suffix too; both options and filter must hold."""
    tree.add('sub-01_ses-a_T1w')
    tree.add('sub-01_ses-b_T1w')
    tree.add('sub-02_ses-a_T1w')
    path = tree.filters(
        {'t1w': {'datatype': 'anat', 'suffix': 'T1w', 'session': 'a', 'subject': ['01', '02']}}
    )
    assert tree.names(bids_filter_file=path) == ['sub-01_ses-a_T1w', 'sub-02_ses-a_T1w']
    assert tree.names(bids_filter_file=path, participant_label=['02']) == ['sub-02_ses-a_T1w']


@pytest.mark.parametrize(
    'entity', ['inv', 'mt', 'ceagent', 'sample', 'direction', 'echo', 'flip', 'part', 'modality']
)
def test_every_entity_that_a_filter_may_name_is_known_to_pybids(tree, entity):
    tree.add('sub-01_T1w')
    path = tree.filters({'t1w': {entity: 'Query.NONE'}})
    assert tree.names(bids_filter_file=path) == ['sub-01_T1w']


@pytest.mark.parametrize(
    ('content', 'hint'),
    [
        ('{"t1": {}}', 'Did you mean "t1w"?'),
        ('{"bold": {}}', 'Known keys: t1w, t2w, flair, pdw'),
        ('{"t1w": {"acquisitions": "x"}}', 'Did you mean "acquisition"?'),
        ('{"t1w": {"acq": "x"}}', '"acq"'),
        ('{"t1w": {"run": {"a": 1}}}', 'label or a list'),
        ('{"t1w": {"run": null}}', 'label or a list'),
        ('{"t1w": {"run": []}}', 'label or a list'),
        ('{"t1w": {"run": "Query.NON"}}', 'Did you mean "Query.NONE"?'),
        ('{"t1w": {"run": ["Query.NON"]}}', 'Did you mean "Query.NONE"?'),
        ('{"t1w": {"suffix": "T2w"}}', 'suffix'),
        ('{"t1w": {"suffix": "T2star"}}', 'suffix'),
        ('{"t1w": {"extension": ".json"}}', 'extension'),
        ('{"t1w": {"datatype": "func"}}', 'datatype'),
        ('{"t1w": {}, "T1w": {}}', 'twice'),
        ('{"t1w": "x"}', 'one object per contrast'),
        ('["t1w"]', 'one object per contrast'),
        ('{"t1w": ', 'cannot be read'),
        ('\udcff', 'cannot be read'),
    ],
)  # fmt: skip
def test_wrong_filter_files(tmp_path, content, hint):
    path = tmp_path / 'filters.json'
    path.write_bytes(content.encode('utf-8', 'surrogateescape'))
    with pytest.raises(UsageError) as caught:
        read_filter_file(path)
    assert hint in str(caught.value)
    assert 'filters.json' in caught.value.where


def test_missing_filter_file_in_plain_words(tmp_path):
    for path in (tmp_path / 'gone.json', tmp_path):
        with pytest.raises(UsageError) as caught:
            read_filter_file(path)
        assert caught.value.where == str(path)
        assert 'Errno' not in caught.value.what
        assert str(path) not in caught.value.what


# --- sites ------------------------------------------------------------------------------------------------


def site(tree, **values):
    (scan,) = tree.select(contrasts=['T1w'], **values).scans
    return scan.site


def test_the_scanner_is_the_site(tree):
    tree.add('sub-01_T1w', **SIEMENS)
    tree.participants('participant_id\tsite\nsub-01\tOslo\n')
    assert site(tree) == 'Siemens-Prismafit-3T-AWP1'


@pytest.mark.parametrize('field', SIEMENS)
def test_every_field_tells_scanners_apart(tree, field):
    tree.add('sub-01_T1w', **SIEMENS)
    tree.add('sub-02_T1w', **{**SIEMENS, field: 1.5})
    tree.add('sub-03_T1w', **{key: value for key, value in SIEMENS.items() if key != field})
    sites = [scan.site for scan in tree.select().scans]
    assert len(set(sites)) == 3


@pytest.mark.parametrize(
    ('field', 'spellings', 'label'),
    [
        (
            'Manufacturer',
            ['Siemens', 'SIEMENS', 'Siemens Healthineers', 'SIEMENS HEALTHCARE GmbH '],
            'Siemens',
        ),
        ('Manufacturer', ['GE', 'GE MEDICAL SYSTEMS', 'General Electric', 'ge_healthcare', 'ge'], 'GE'),
        ('Manufacturer', ['Philips', 'Philips Medical Systems', 'PHILIPS-F82F70A'], 'Philips'),
        ('Manufacturer', ['Geneva Magnets'], 'GenevaMagnets'),
        ('MagneticFieldStrength', [3, 3.0, '3', ' 3.0 ', '3T', '3 Tesla', 2.89362, 2.9], '3T'),
        ('MagneticFieldStrength', [1.5, '1.5', 1.494], '1.5T'),
        ('MagneticFieldStrength', [0.55], '0.55T'),
        ('MagneticFieldStrength', [0.5], '0.5T'),
        ('MagneticFieldStrength', [0.6], '0.6T'),
        ('MagneticFieldStrength', [14.1], '14.1T'),
        ('MagneticFieldStrength', ['high'], 'high'),
        ('MagneticFieldStrength', [True], 'True'),
        ('MagneticFieldStrength', [[3]], '3'),
    ],
)
def test_one_scanner_is_one_site_however_it_is_written(tree, field, spellings, label):
    """Two converters, or two versions of the scanner's software, must not make two sites of one scanner."""
    for number, spelling in enumerate(spellings):
        tree.add(f'sub-{number}_T1w', **{field: spelling})
    assert {scan.site for scan in tree.select().scans} == {label}
    assert {scan.site for scan in tree.select(site=field).scans} == {label}


def test_without_scanner_the_column_site_counts(tree):
    tree.add('sub-01_T1w', EchoTime=0.003)
    assert site(tree) == 'unknown'
    tree.participants('participant_id\tsite\nsub-01\tSt. Olav/2\n')
    assert site(tree) == 'St.Olav2'
    tree.participants('participant_id\tsite\nsub-01\tn/a\n')
    assert site(tree) == 'unknown'


@pytest.mark.parametrize(
    ('rule', 'label'),
    [
        ('centre', 'Oslo'),
        ('session', 'a'),
        ('MagneticFieldStrength', '3T'),
        ('Manufacturer,MagneticFieldStrength', 'Siemens-3T'),
        (' centre , session ', 'Oslo-a'),
        ('StationName,nothing', 'AWP1'),
    ],
)
def test_rules_of_the_user(tree, rule, label):
    tree.add('sub-01_ses-a_T1w', **SIEMENS)
    tree.participants('participant_id\tcentre\tStationName\nsub-01\tOslo\tcolumn\n')
    assert site(tree, site=rule) == label


@pytest.mark.parametrize('rule', ['nothing', 'nothing,nowhere', 'session', 'hospital', 'EchoTrain'])
@pytest.mark.parametrize('more', [{}, {'participant_label': ['01']}])
def test_rule_that_gives_no_scan_a_site_ends_the_run(tree, rule, more):
    """All scanners would be one site, and nobody would notice."""
    tree.add('sub-01_T1w', **SIEMENS, EchoTrain=' ')
    tree.add('sub-02_T1w', EchoTime=0.003)
    tree.participants('participant_id\tcentre\thospital\nsub-01\tOslo\tn/a\n')
    with pytest.raises(UsageError) as caught:
        tree.select(site=rule, **more)
    assert caught.value.where == '--site'
    assert f'"{rule}"' in caught.value.what
    assert 'participants.tsv: centre, hospital.' in caught.value.fix
    fields = caught.value.fix.partition('fields: ')[2]
    assert fields == f'{", ".join(SIEMENS)}, EchoTime.'


def test_sessions_are_offered_where_there_are_some(tree):
    tree.add('sub-01_ses-a_T1w')
    with pytest.raises(UsageError) as caught:
        tree.select(site='nothing')
    assert caught.value.fix == (
        'Columns of participants.tsv: none. Sidecar fields: none. There are sessions: "session".'
    )


def test_scans_that_the_rule_does_not_reach_say_so(tree):
    tree.add('sub-01_T1w', **SIEMENS)
    tree.add('sub-02_T1w')
    tree.participants('participant_id\tcentre\nsub-01\tOslo\nsub-02\tn/a\n')
    for rule, label in (('centre', 'Oslo'), ('StationName', 'AWP1')):
        first, second = tree.select(site=rule).scans
        assert (first.site, first.warnings) == (label, ())
        assert second.site == 'unknown'
        assert second.warnings == (f'No value of --site {rule} for this scan: its site is unknown.',)


@pytest.mark.parametrize('rule', ['centre', 'StationName', 'session'])
def test_job_for_one_subject_ends_as_the_job_for_all(tree, rule):
    tree.add('sub-01_ses-a_T1w', **SIEMENS)
    tree.add('sub-02_T1w')
    tree.participants('participant_id\tcentre\nsub-01\tOslo\n')
    (scan,) = tree.select(site=rule, participant_label=['02']).scans
    assert scan.site == 'unknown'
    assert rule in scan.warnings[0]
    assert scan == tree.select(site=rule).scans[1]


def test_unknown_scanner_needs_no_warning(tree):
    tree.add('sub-01_T1w')
    (scan,) = tree.select(site='auto').scans
    assert (scan.site, scan.warnings) == ('unknown', ())


def test_site_that_is_called_unknown(tree):
    tree.add('sub-01_T1w')
    tree.participants('participant_id\tcentre\nsub-01\tunknown\n')
    (scan,) = tree.select(site='centre').scans
    assert (scan.site, scan.warnings) == ('unknown', ())


@pytest.mark.parametrize('field', [1.5, 3, '3', '3T'])
def test_field_strength_as_number_or_text(tree, field):
    tree.add('sub-01_T1w', MagneticFieldStrength=field)
    assert site(tree) == {1.5: '1.5T', 3: '3T', '3': '3T', '3T': '3T'}[field]


def test_a_site_can_stand_in_a_file_name(tree):
    tree.add('sub-01_T1w', Manufacturer='../../etc; rm -rf ' + 'x' * 500, StationName=['a', {'b': 1}])
    label = site(tree)
    assert set(label) <= set('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-')
    assert len(label) < 100
    assert '/' not in label


# --- participants.tsv -------------------------------------------------------------------------------------


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_participants_from_any_editor(tree, encoding, end):
    tree.participants(
        end.join(['participant_id\tage\tsite', 'sub-01\t40\tOslo', '02\tn/a\t Bergen ', '', '']), encoding
    )
    assert read_participants(tree.root) == {
        '01': {'participant_id': 'sub-01', 'age': '40', 'site': 'Oslo'},
        '02': {'participant_id': '02', 'age': 'n/a', 'site': 'Bergen'},
    }


@pytest.mark.parametrize(
    ('content', 'rows'),
    [
        (b'', set()),
        (b'participant_id,site\nsub-01,Oslo\n', set()),
        (b'id\tsite\nsub-01\tOslo\n', set()),
        (b'participant_id\tsite\nsub-01\tOslo\nsub-02\n\tBergen\nsub-03\ta\tb\tc\n', {'01', '02', '03'}),
        (b'\xff\xfep\x00a\x00', set()),
        (b'participant_id\tsite\nsub-01\t\xe5\n', set()),
        (b'participant_id\tsite\nsub-01\t"' + b'x' * 200_000 + b'\n', set()),
        (b'\x00\x00\x00', set()),
    ],
)
def test_broken_participants_cost_the_columns_not_the_run(tree, content, rows):
    tree.add('sub-01_T1w')
    (tree.root / 'participants.tsv').write_bytes(content)
    assert set(read_participants(tree.root)) == rows
    assert tree.names() == ['sub-01_T1w']


def test_first_row_of_a_subject_counts(tree):
    tree.participants('participant_id\tsite\nsub-01\tOslo\nsub-01\tBergen\n')
    assert read_participants(tree.root)['01']['site'] == 'Oslo'


def test_participants_may_be_missing_or_a_folder(tree):
    assert read_participants(tree.root) == {}
    (tree.root / 'participants.tsv').mkdir()
    assert read_participants(tree.root) == {}


# --- anchors ----------------------------------------------------------------------------------------------


def anchors(tree, **values):
    found = tree.select(**values)
    return {scan.name: found.anchor(scan).name for scan in found.scans}


def test_contrasts_follow_the_t1w_of_their_session(tree):
    for name in (
        'sub-01_ses-a_T1w',
        'sub-01_ses-b_T1w',
        'sub-01_ses-b_T2w',
        'sub-01_ses-c_FLAIR',
        'sub-02_ses-c_T1w',
    ):
        tree.add(name)
    assert anchors(tree) == {
        'sub-01_ses-a_T1w': 'sub-01_ses-a_T1w',
        'sub-01_ses-b_T1w': 'sub-01_ses-b_T1w',
        'sub-01_ses-b_T2w': 'sub-01_ses-b_T1w',
        'sub-01_ses-c_FLAIR': 'sub-01_ses-a_T1w',
        'sub-02_ses-c_T1w': 'sub-02_ses-c_T1w',
    }


@pytest.mark.parametrize('values', [{'contrasts': ['T2w']}, {'session_label': ['b']}, {'run': ['1']}])
def test_the_anchor_does_not_depend_on_what_was_asked_for(tree, values):
    tree.add('sub-01_ses-a_T1w')
    tree.add('sub-01_ses-b_run-1_T2w')
    assert anchors(tree, **values) == {'sub-01_ses-b_run-1_T2w': 'sub-01_ses-a_T1w'}


def test_the_anchor_is_no_contrast_enhanced_scan(tree):
    for name in ('sub-01_ce-gd_T1w', 'sub-01_run-1_T1w', 'sub-01_T2w', 'sub-02_ce-gd_T1w', 'sub-02_T2w'):
        tree.add(name)
    found = anchors(tree)
    assert found['sub-01_T2w'] == 'sub-01_run-1_T1w'
    assert found['sub-02_T2w'] == 'sub-02_ce-gd_T1w'


def test_subject_without_t1w(tree):
    """The first contrast of each session stands in."""
    for name in (
        'sub-01_ses-a_T2w',
        'sub-01_ses-a_FLAIR',
        'sub-01_ses-b_FLAIR',
        'sub-01_ses-b_PDw',
        'sub-02_ses-a_T1w',
    ):
        tree.add(name)
    found = anchors(tree, participant_label=['01'])
    assert found == {
        'sub-01_ses-a_T2w': 'sub-01_ses-a_T2w',
        'sub-01_ses-a_FLAIR': 'sub-01_ses-a_T2w',
        'sub-01_ses-b_FLAIR': 'sub-01_ses-b_FLAIR',
        'sub-01_ses-b_PDw': 'sub-01_ses-b_FLAIR',
    }


def test_sidecar_warnings_come_with_the_scan(tree):
    tree.add('sub-01_T1w').with_name('sub-01_T1w.json').write_text('{"Manufacturer": ')
    tree.add('sub-02_T1w', Manufacturer='GE')
    first, second = tree.select().scans
    assert 'sub-01_T1w.json' in first.warnings[0]
    assert first.site == 'unknown'
    assert (second.warnings, second.metadata) == ((), json.loads('{"Manufacturer": "GE"}'))


def test_a_quote_in_a_cell_swallows_no_other_rows(tree):
    """Tables of BIDS know no quoting."""
    (tree.root / 'participants.tsv').write_text(
        'participant_id\tsite\tnote\nsub-01\tOslo\t"odd\nsub-02\tBergen\tfine\nsub-03\tTromso\t5" coil\n'
    )
    table = read_participants(tree.root)
    assert {label: row['site'] for label, row in table.items()} == {
        '01': 'Oslo',
        '02': 'Bergen',
        '03': 'Tromso',
    }
