from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.validation import find_validator
from bidsharm.cli.simulate import main as simulate
from bidsharm.cli.surface import main
from bidsharm.harmonizers import bundle
from bidsharm.imaging.icosphere import icosphere
from bidsharm.imaging.surfaces import read_map, write_map
from bidsharm.simulation.surfaces import medial_wall

TRAIN = ['--site', 'session', '--target', 'A', '--preset', 'tiny', '--set', 'steps=3']


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leave the pictures away, which take longer than everything else, but where they are tested."""
    if 'pictures' not in request.node.name:
        monkeypatch.setattr('bidsharm.reports.surfaces.pictures', lambda *_: 'data:image/png;base64,')


@pytest.fixture(scope='module')
def derivatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('surfaces') / 'in'
    assert simulate([str(out), '--surfaces', '--subjects', '3', '--scanners', '2', '--level', '3']) == 0
    return out


@pytest.fixture(scope='module')
def trained(derivatives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('surfaces') / 'out'
    patch = pytest.MonkeyPatch()
    patch.setattr('bidsharm.reports.surfaces.pictures', lambda *_: 'data:image/png;base64,')
    assert main([str(derivatives), str(out), *TRAIN]) == 0
    patch.undo()
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def one_map(root: Path, session: str = 'B', side: str = 'L', desc: str = '') -> Path:
    folder = root / f'sub-01/ses-{session}/anat'
    return folder / f'sub-01_ses-{session}_hemi-{side}_space-fsaverage_den-642{desc}_thickness.shape.gii'


def test_every_map_is_harmonized_and_says_how(derivatives: Path, trained: Path) -> None:
    assert len(list(trained.glob('sub-*/ses-*/anat/*_desc-harmonized_thickness.shape.gii'))) == 12
    before, after = one_map(derivatives), one_map(trained, desc='_desc-harmonized')
    old, new = read_map(before, 'L'), read_map(after, 'L')
    wall = medial_wall(3, 'L')
    assert np.array_equal(new[wall], old[wall])
    assert not np.array_equal(new[~wall], old[~wall])
    sidecar = json.loads(after.with_name(after.name.replace('.shape.gii', '.json')).read_text())
    assert sidecar['Sources'] == [f'bids:surfaces:{before.relative_to(derivatives)}']
    assert sidecar['Units'] == 'mm'
    record = sidecar['Harmonization']
    assert (record['Method'], record['Target'], record['Site']) == ('cdae', 'A', 'B')
    assert record['ModelDigest'] == bundle.digest(trained / 'models' / 'cdae')
    assert nib.load(after).darrays[0].meta['AnatomicalStructurePrimary'] == 'CortexLeft'


def test_the_output_is_valid_bids_and_has_a_page(trained: Path) -> None:
    page = (trained / 'surfaces.html').read_text()
    assert '12 maps of 2 sites, brought to' in page
    assert 'Mean before' in page
    validator = find_validator()
    if validator is None:
        pytest.skip('bids-validator-deno is not installed')
    done = subprocess.run(
        [validator, str(trained), '--ignoreWarnings', '--format', 'json'], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert json.loads(done.stdout)['issues']['issues'] == []


def test_a_model_gives_the_same_again_and_changes_no_input(
    derivatives: Path, trained: Path, tmp_path: Path
) -> None:
    before = contents(derivatives)
    command = [
        str(derivatives),
        str(tmp_path / 'out'),
        '--model',
        str(trained / 'models' / 'cdae'),
        '--site',
        'session',
    ]
    assert main(command) == 0
    name = one_map(Path(), desc='_desc-harmonized')
    assert (tmp_path / 'out' / name).read_bytes() == (trained / name).read_bytes()
    assert contents(derivatives) == before
    assert not (tmp_path / 'out' / 'models').exists()


def test_pictures_show_each_site(trained: Path) -> None:
    from bidsharm.reports.surfaces import Pair, pictures

    rng = np.random.default_rng(0)
    cortex = ~medial_wall(3, 'L')
    pairs = [
        Pair(f'{n}', f'{n}', site, 'L', *(rng.random(642).astype(np.float32) for _ in range(2)), cortex)
        for n in range(2) for site in 'AB'
    ]  # fmt: skip
    found = pictures(pairs, 'L', 'A')
    assert found.startswith('data:image/png;base64,')
    assert len(found) > 10_000


def native(derivatives: Path, root: Path) -> None:
    """Write the maps as FreeSurfer has them: each person with vertices in an order of its own, and its sphere."""
    for number, path in enumerate(sorted(derivatives.glob('sub-*/ses-*/anat/*_thickness.shape.gii'))):
        session, side = path.parts[-3], path.name.split('hemi-')[1][0]
        surf = root / f'{path.parts[-4]}_{session}' / 'surf'
        surf.mkdir(parents=True, exist_ok=True)
        sphere = icosphere(4)
        order = np.random.default_rng(number).permutation(sphere.size)
        fine = np.zeros(sphere.size, np.float32)
        coarse = read_map(path, side)
        nearest = (sphere.vertices @ icosphere(3).vertices.T).argmax(axis=1)
        fine[:] = coarse[nearest]
        place = np.empty_like(order)
        place[order] = np.arange(sphere.size)
        head = 'lh' if side == 'L' else 'rh'
        nib.freesurfer.write_morph_data(surf / f'{head}.thickness', fine[order])
        nib.freesurfer.write_geometry(
            surf / f'{head}.sphere.reg', 100 * sphere.vertices[order], place[sphere.faces]
        )


def test_subjects_of_freesurfer_are_harmonized_in_their_own_vertices(
    derivatives: Path, tmp_path: Path
) -> None:
    native(derivatives, tmp_path / 'subjects')
    (tmp_path / 'subjects' / 'fsaverage' / 'surf').mkdir(parents=True)
    shutil.copy(
        next((tmp_path / 'subjects').glob('sub-*/surf/lh.thickness')), tmp_path / 'subjects' / 'fsaverage' / 'surf'
    )  # fmt: skip
    assert main([str(tmp_path / 'subjects'), str(tmp_path / 'out'), *TRAIN]) == 0
    found = tmp_path / 'out/sub-01/ses-B/anat/sub-01_ses-B_hemi-L_desc-harmonized_thickness.shape.gii'
    after = read_map(found, 'L')
    before = read_map(tmp_path / 'subjects/sub-01_ses-B/surf/lh.thickness', 'L')
    assert np.array_equal(after == 0, before == 0)
    assert 0 < np.abs(after - before)[before > 0].mean() < 0.5
    assert len(list((tmp_path / 'out').glob('sub-*'))) == 3
    assert 'barycentric' in found.with_name(found.name.replace('.shape.gii', '.json')).read_text()


def broken(derivatives: Path, folder: Path) -> Path:
    shutil.copytree(derivatives, folder)
    return folder


BAD = {
    'no fsaverage has': lambda path: write_map(path, np.ones(700, np.float32), 'L'),
    'cannot be read as GIFTI': lambda path: path.write_bytes(b'nothing'),
    'hemisphere L, and its content says CortexRight': lambda path: write_map(
        path, np.ones(642, np.float32), 'R'
    ),
    'at 0 vertices only': lambda path: write_map(path, np.zeros(642, np.float32), 'L'),
}


@pytest.mark.parametrize('message', BAD)
def test_a_bad_map_is_named_and_the_others_go_on(
    derivatives: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, message: str
) -> None:
    folder = broken(derivatives, tmp_path / 'in')
    BAD[message](one_map(folder))
    command = [
        str(folder),
        str(tmp_path / 'out'),
        '--model',
        str(trained / 'models' / 'cdae'),
        '--site',
        'session',
    ]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert message in said
    assert 'sub-01_ses-B_hemi-L' in said
    assert len(list((tmp_path / 'out').glob('sub-*/ses-*/anat/*.gii'))) == 11


def test_a_map_that_cannot_be_learnt_from_does_not_cost_the_training(
    derivatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = broken(derivatives, tmp_path / 'in')
    BAD['at 0 vertices only'](one_map(folder))
    assert main([str(folder), str(tmp_path / 'out'), *TRAIN]) == 1
    assert 'sub-01_ses-B_hemi-L' in capsys.readouterr().err
    assert len(list((tmp_path / 'out').glob('sub-*/ses-*/anat/*.gii'))) == 11


def test_a_map_without_a_sphere_is_refused_and_one_can_be_given(
    derivatives: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = broken(derivatives, tmp_path / 'in')
    for path in list(folder.glob('sub-*/ses-*/anat/*')):
        path.rename(path.with_name(path.name.replace('space-fsaverage', 'space-fsLR')))
    command = [
        str(folder),
        str(tmp_path / 'out'),
        '--model',
        str(trained / 'models' / 'cdae'),
        '--site',
        'session',
        '--hemi',
        'L',
    ]
    assert main(command) == 3
    assert 'tpl-fsLR_space-fsaverage_hemi-L_den-32k_sphere' in capsys.readouterr().err
    sphere = tmp_path / 'lh.sphere.reg'
    nib.freesurfer.write_geometry(sphere, 100 * icosphere(3).vertices, icosphere(3).faces)
    assert main([*command, '--sphere', f'L={sphere}']) == 0
    nib.freesurfer.write_geometry(sphere, 100 * icosphere(2).vertices, icosphere(2).faces)
    assert main([*command, '--sphere', f'L={sphere}']) == 3
    assert 'has 642 vertices, and its sphere 162' in capsys.readouterr().err


def test_the_site_can_be_a_column(derivatives: Path, tmp_path: Path) -> None:
    (tmp_path / 'participants.tsv').write_text('participant_id\tplace\nsub-01\tX\nsub-02\tY\nsub-03\tX\n')
    options = [
        '--site',
        'place',
        '--participants',
        str(tmp_path),
        '--target',
        'X',
        '--preset',
        'tiny',
        '--set',
        'steps=1',
    ]
    assert main([str(derivatives), str(tmp_path / 'out'), '--harmonizer', 's2sgan', *options]) == 0
    assert bundle.read_card(tmp_path / 'out/models/s2sgan')['settings']['sites'] == ['X', 'Y']


@pytest.mark.parametrize(
    ('options', 'code', 'message'),
    [
        (['--target', 'A'], 2, 'where a map was made'),
        (['--site', 'session'], 2, 'which site to bring'),
        ([*TRAIN, '--target', 'Z'], 2, 'There are: A, B'),
        ([*TRAIN, '--map', 'sulc'], 3, 'no map "sulc"'),
        ([*TRAIN, '--space', 'fsLR'], 3, 'in the space "fsLR"'),
        ([*TRAIN, '--harmonizer', 'combat'], 2, 'no cortical surfaces'),
        ([*TRAIN, '--harmonizer', 'cdea'], 2, 'Did you mean cdae'),
        ([*TRAIN, '--set', 'colour=1'], 2, 'no setting "colour"'),
        (['--model', 'nowhere'], 78, 'no model bundle'),
    ],
)
def test_what_makes_no_sense_is_said(
    derivatives: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert main([str(derivatives), str(tmp_path / 'out'), *options]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob('out/sub-*'))


def test_folders_of_others_are_left_alone(
    derivatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'dataset_description.json').write_text('{"Name": "mine"}')
    assert main([str(derivatives), str(tmp_path), *TRAIN]) == 2
    assert 'another data set' in capsys.readouterr().err
    assert main([str(derivatives), str(derivatives / 'out'), *TRAIN]) == 2
    assert 'lies in the folder' in capsys.readouterr().err
    assert not (derivatives / 'out').exists()
    assert main([str(tmp_path / 'none'), str(tmp_path / 'out'), *TRAIN]) == 2


def test_several_spaces_need_a_choice(
    derivatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = broken(derivatives, tmp_path / 'in')
    path = one_map(folder)
    shutil.copy(path, path.with_name('sub-01_ses-B_hemi-L_thickness.shape.gii'))
    assert main([str(folder), str(tmp_path / 'out'), *TRAIN]) == 2
    assert 'several spaces: fsaverage, native' in capsys.readouterr().err


def test_simulated_surfaces_have_sites_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert simulate([str(tmp_path / 'out'), '--surfaces', '--scanners', 'prisma']) == 2
    assert 'Give their number' in capsys.readouterr().err


def test_a_training_that_was_stopped_goes_on(
    derivatives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bidsharm.training.loop import Loop

    command = [str(derivatives), str(tmp_path / 'out'), *TRAIN]
    whole = tmp_path / 'whole'
    assert main([str(derivatives), str(whole), *TRAIN]) == 0
    pause, paused = Loop._pause, []

    def stop_after_the_first(self: Loop) -> None:
        pause(self)
        paused.append(self.step)
        if len(paused) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, '_pause', stop_after_the_first)
    assert main(command) == 1
    checkpoints = list((tmp_path / 'out' / 'training').glob('*/hemi-L/checkpoint.pt'))
    assert len(checkpoints) == 1
    assert not (tmp_path / 'out' / 'models').exists()
    assert main(command) == 0
    assert paused == [3, 3]  # the left hemisphere was ready, so that only the right one was trained
    assert not (tmp_path / 'out' / 'training').exists()
    assert bundle.digest(tmp_path / 'out' / 'models' / 'cdae') == bundle.digest(whole / 'models' / 'cdae')
