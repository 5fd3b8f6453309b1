"""The command as a whole, short of processing a scan: exit codes, what is said, and what is left untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows import group, participant

from bidsharm.cli.run import main, quiet_libraries
from bidsharm.errors import BidsharmError, ConfigurationError, ExitCode, NothingToDo, ScanError, UsageError


def tree_state(*roots):
    """Return every path below some folders with what would show that it was written."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for root in roots
        for path in [root, *sorted(root.rglob('*'))]
    }


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Put the environment back, which the command prepares for libraries."""
    for name in ('NO_ET', 'MPLBACKEND', 'HOME'):
        monkeypatch.setenv(name, os.environ.get(name, ''))


@pytest.fixture
def bids(tmp_path):
    """Two subjects, one of them with two sessions and a FLAIR."""
    root = tmp_path / 'bids'
    noise = np.random.default_rng(3).integers(0, 500, (10, 11, 12)).astype(np.int16)
    for stem in ('sub-01_T1w', 'sub-02_ses-a_T1w', 'sub-02_ses-a_FLAIR', 'sub-02_ses-b_FLAIR'):
        subject, *session, _ = stem.split('_')
        path = root.joinpath(subject, *session, 'anat', f'{stem}.nii.gz')
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(noise, np.eye(4)).to_filename(path)
    (root / 'dataset_description.json').write_text('{"Name": "Tiny", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def command(bids, tmp_path, capsys):
    """Return a function that runs the command and gives back exit code, output and complaints."""

    def run(*options, level='participant', out=tmp_path / 'out'):
        code = main(
            [str(bids), str(out), level, '--skip-bids-validation', '--nprocs', '1', *map(str, options)]
        )
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# --- dry run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [
        [],
        ['--write-graph', '--resource-monitor', '--clean-workdir'],
        ['--reports-only'],
        ['--boilerplate-only'],
        ['--force', '--harmonizer', 'nyul', '--target-scans', '2', '--contrasts', 'T1w'],
        ['--bids-database-dir', 'index'],
    ],
    ids=' '.join,
)
def test_dry_run_writes_nothing_anywhere(command, bids, tmp_path, options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tree_state(tmp_path)
    code, out, err = command('--dry-run', '-w', tmp_path / 'work', *options)
    assert (code, err) == (0, '')
    assert tree_state(tmp_path) == before
    assert 'sub-01_T1w' in out


def test_dry_run_tells_what_would_be_done(command):
    code, out, _ = command('--dry-run', '--target', 'canonical')
    assert code == 0
    for words in (
        '2 subjects, 4 scans', 'Harmonizer: tscore', 'sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz',
        'sub-02/ses-b/anat/sub-02_ses-b_desc-harmonized_FLAIR.nii.gz', 'sub-02/ses-b/anat/sub-02_ses-b_desc-FLAIR_qc.json',
    ):  # fmt: skip
        assert words in out
    line = next(line for line in out.splitlines() if 'sub-02_ses-b_FLAIR' in line)
    assert 'sub-02_ses-a_T1w' in line, 'what a scan follows'
    assert 'to do' in line


def test_dry_run_obeys_the_selection(command):
    _, out, _ = command(
        '--dry-run', '--participant-label', 'sub-02', '--session-id', 'a', '--contrasts', 'T1w'
    )
    assert '1 subject, 1 scan' in out
    assert 'sub-01' not in out
    assert 'FLAIR' not in out


def test_dry_run_over_results_changes_nothing(command, tmp_path):
    """Neither does it touch the outputs of an earlier run."""
    out = tmp_path / 'out'
    (out / 'logs').mkdir(parents=True)
    (out / 'dataset_description.json').write_text('{"GeneratedBy": [{"Name": "bidsharm"}]}')
    before = tree_state(tmp_path)
    assert command('--dry-run')[0] == 0
    assert tree_state(tmp_path) == before


# --- boilerplate ------------------------------------------------------------------------------------------


def test_boilerplate_only(command, bids, tmp_path):
    before = tree_state(bids)
    code, out, _ = command('--boilerplate-only', '--skull-strip', 'skip', '--harmonizer', 'zscore')
    assert code == 0
    assert '# Methods' in out
    assert '"zscore"' in out
    assert 'deepbet' not in out
    assert tree_state(bids) == before
    assert (tmp_path / 'out/logs/CITATION.md').read_text().strip() == out.strip()
    assert not list((tmp_path / 'out').glob('sub-*'))


# --- exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--participant-label', '99'], '--participant-label: Not in the data set: 99. There are: 01, 02.'),
        (['--session-label', 'c'], 'Not in the data set: c. There are: a, b.'),
        (['--harmonizer', 'robst'], 'There is no harmonizer "robst". Did you mean robust'),
        (['--harmonizer', 'Nyul'], 'Did you mean nyul'),
        (['--harmonizer', 'qqqq'], 'There are: identity, robust'),
        (['--target', 'Atlantis'], '"Atlantis" is neither a site of this data set nor a file'),
        (['--output-spaces', 'not a space'], 'no output space'),
        (['--site', 'nonsense'], '--site: No scan has a value of "nonsense".'),
        (['--derivatives', 'gone=/nowhere'], 'derivatives folder does not exist'),
    ],
)
def test_usage_errors(command, tmp_path, bids, options, said):
    before = tree_state(bids)
    code, out, err = command(*options)
    assert (code, out) == (ExitCode.USAGE, '')
    assert err.startswith('bidsharm: ')
    assert said in err
    assert len(err.splitlines()) == 1, 'one sentence, no traceback'
    assert not (tmp_path / 'out').exists()
    assert tree_state(bids) == before


def test_usage_error_of_the_parser(command):
    with pytest.raises(SystemExit) as caught:
        command('--nprocs', 'many')
    assert caught.value.code == 2


def test_work_folder_in_the_data_set(command, bids):
    code, _, err = command('-w', bids / 'work')
    assert code == 2
    assert 'inside the data set' in err
    assert not (bids / 'work').exists()


@pytest.mark.parametrize(
    'options', [['--contrasts', 'PDw'], ['--run', '1'], ['--participant-label', '01', '--contrasts', 'FLAIR']]
)
def test_nothing_to_do(command, tmp_path, options):
    code, _, err = command(*options)
    assert code == ExitCode.NOTHING_TO_DO == 3
    assert len(err.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_group_without_participants(command, tmp_path):
    code, _, err = command(level='group')
    assert code == 3
    assert 'Run the participant level first' in err


def test_a_card_that_is_not_there(command, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip('this machine has a CUDA device')
    code, _, err = command('--device', 'cuda')
    assert code == ExitCode.CONFIGURATION == 78
    assert 'The device "cuda" is not there' in err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('options', 'expected'), [(['--device', 'cuda:999'], 78), (['--harmonizer', 'robst'], 2)]
)
def test_group_needs_what_it_is_told_to_use(command, tmp_path, options, expected):
    code, _, err = command(*options, level='group')
    assert code == expected
    assert options[1] in err
    assert not (tmp_path / 'out').exists()


def test_a_card_beyond_the_last_one(command):
    code, _, err = command('--device', 'cuda:999', '--dry-run')
    assert code == 78
    assert 'cuda:999' in err


def test_a_template_that_is_not_there(command, tmp_path, monkeypatch):
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'templateflow'))
    code, _, err = command('--offline', '--output-spaces', 'MNI152NLin6Asym')
    assert code == 78
    assert 'MNI152NLin6Asym' in err


def test_a_model_that_is_not_there(command, tmp_path):
    code, _, err = command('--harmonizer', 'nyul', '--model', tmp_path / 'gone', '--contrasts', 'T1w')
    assert code == 78
    assert 'gone' in err


def test_an_output_folder_of_another_pipeline(command, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'dataset_description.json').write_text(json.dumps({'GeneratedBy': [{'Name': 'fMRIPrep'}]}))
    before = tree_state(tmp_path)
    code, _, err = command()
    assert code == 2
    assert 'another data set' in err
    assert tree_state(tmp_path) == before


@pytest.mark.parametrize('kind', ['file', 'unwritable'])
def test_an_output_folder_that_cannot_be_written(command, tmp_path, monkeypatch, kind):
    out = tmp_path / 'out'
    if kind == 'file':
        out.touch()
    else:
        out.mkdir()
        allowed = os.access
        # Permissions do not bind root, whom tests in containers run as.
        monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != out and allowed(path, mode))
    before = tree_state(tmp_path)
    code, _, err = command()
    assert code == 2
    assert str(out) in err
    assert len(err.splitlines()) == 1
    assert tree_state(tmp_path) == before


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (ScanError('x'), 1), (UsageError('x'), 2), (NothingToDo('x'), 3), (ConfigurationError('x'), 78),
        (KeyboardInterrupt(), 1), (RuntimeError('boom'), 70), (MemoryError(), 1), (AssertionError(), 70),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize('level', ['participant', 'group'])
def test_every_kind_of_end_has_its_code(command, monkeypatch, error, code, level):
    def fail(settings, console, arguments):
        raise error

    monkeypatch.setattr(participant, 'run_participant', fail)
    monkeypatch.setattr(group, 'run_group', fail)
    ended, _, err = command(level=level)
    assert ended == code
    assert ('Traceback' in err) is (code == 70), 'a traceback is for our faults'
    assert ('internal error' in err) is (code == 70)
    if isinstance(error, BidsharmError):
        assert err == 'bidsharm: x\n'
    if isinstance(error, KeyboardInterrupt):
        assert 'goes on from there' in err


def test_the_code_of_the_run_is_the_code_of_the_command(command, monkeypatch):
    monkeypatch.setattr(participant, 'run_participant', lambda *_: ExitCode.SCAN_FAILED)
    assert command()[0] == 1


def test_an_error_while_parsing_is_ours_too(command, monkeypatch):
    monkeypatch.setattr('bidsharm.cli.parser.parse_settings', lambda argv: 1 / 0)
    code, _, err = command()
    assert code == 70
    assert 'ZeroDivisionError' in err


def test_the_settings_reach_the_run(command, monkeypatch, bids, tmp_path):
    seen = []
    monkeypatch.setattr(participant, 'run_participant', lambda settings, *_: seen.append(settings) or 0)
    command('--harmonizer', 'nyul', '--participant-label', 'sub-02')
    (settings,) = seen
    assert (settings.harmonizer, settings.participant_label) == ('nyul', ('02',))
    assert (settings.bids_dir, settings.output_dir) == (bids, tmp_path / 'out')


# --- surroundings -----------------------------------------------------------------------------------------


def test_no_library_calls_home(monkeypatch):
    monkeypatch.delenv('NO_ET', raising=False)
    monkeypatch.setenv('MPLBACKEND', 'TkAgg')
    quiet_libraries()
    assert os.environ['NO_ET'] == '1'
    assert os.environ['MPLBACKEND'] == 'TkAgg', "the user's choice stays"


@pytest.mark.parametrize('home', ['', '/nonexistent'])
def test_a_user_without_home_gets_one(monkeypatch, home):
    """Containers run as users that have none."""
    monkeypatch.setenv('HOME', home)
    quiet_libraries()
    assert os.access(os.environ['HOME'], os.W_OK)


def test_a_lent_home_is_gone_afterwards(tmp_path):
    code = 'import os; from bidsharm.cli.run import quiet_libraries; quiet_libraries(); print(os.environ["HOME"])'
    surroundings = {'PATH': os.environ['PATH'], 'TMPDIR': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=surroundings, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_nowhere_to_write_is_said(monkeypatch):
    def none() -> str:
        raise FileNotFoundError('No usable temporary directory found')

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr(tempfile, 'gettempdir', none)
    with pytest.raises(ConfigurationError, match='TMPDIR'):
        quiet_libraries()


def test_the_home_of_the_user_stays(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    quiet_libraries()
    assert os.environ['HOME'] == str(tmp_path)
