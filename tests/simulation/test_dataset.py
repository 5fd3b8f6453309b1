from __future__ import annotations

import csv
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.bids.validation import find_validator
from bidsharm.cli.simulate import main
from bidsharm.errors import ExitCode, UsageError
from bidsharm.simulation import dataset
from bidsharm.simulation.dataset import prepare_folder, simulate
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.unfinished import request_of

RESOLUTION = 4.0
CONTRASTS = ('T1w', 'T2w', 'FLAIR')


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def truth(root: Path, subject: str, scanner: str, name: str) -> np.ndarray:
    stem = f'sub-{subject}_ses-{scanner}'
    return read(root / 'derivatives/truth' / f'sub-{subject}/ses-{scanner}/anat/{stem}_{name}.nii.gz')


@pytest.fixture(scope='module')
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('simulated') / 'heads'
    return simulate(out, subjects=2, scanners=PRESETS[:3], contrasts=CONTRASTS, resolution=RESOLUTION, seed=5)


def test_every_subject_visits_every_scanner(heads: Path):
    scans = sorted(path.name for path in heads.glob('sub-*/ses-*/anat/*.nii.gz'))
    assert scans == sorted(
        f'sub-{subject}_ses-{scanner.label}_{contrast}.nii.gz'
        for subject in ('01', '02')
        for scanner in PRESETS[:3]
        for contrast in CONTRASTS
    )
    with (heads / 'participants.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert [row['participant_id'] for row in rows] == ['sub-01', 'sub-02']
    assert all(20 <= int(row['age']) <= 80 and row['sex'] in ('F', 'M') for row in rows)
    for row in rows:
        assert row['anatomy'] == 'MNI152'
        assert 0.83 < float(row['size']) < 1.02
        # The brain of a person, not of a giant.
        assert 1000 < sum(float(row[name]) for name in ('csf_ml', 'gm_ml', 'wm_ml')) < 2000
    assert not list(heads.rglob('.tmp-*'))


def test_the_data_set_and_its_truth_are_valid_bids(heads: Path):
    validator = find_validator()
    if validator is None:
        pytest.skip('bids-validator-deno is not installed')
    for folder in (heads, heads / 'derivatives' / 'truth'):
        done = subprocess.run(
            [validator, str(folder), '--ignoreWarnings', '--format', 'json'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout)['issues']['issues'] == []
        assert done.returncode == 0


@pytest.mark.parametrize('scanner', PRESETS[:3], ids=lambda scanner: scanner.label)
def test_sidecars_tell_what_was_simulated(heads: Path, scanner):
    for contrast in CONTRASTS:
        sequence = scanner.sequence(contrast)
        stem = f'sub-01_ses-{scanner.label}_{contrast}'
        meta = json.loads((heads / f'sub-01/ses-{scanner.label}/anat/{stem}.json').read_text())
        assert meta['MagneticFieldStrength'] == scanner.field_strength
        assert (meta['Manufacturer'], meta['ManufacturersModelName']) == (
            scanner.manufacturer,
            scanner.model_name,
        )
        assert (meta['RepetitionTime'], meta['EchoTime']) == (sequence.repetition_time, sequence.echo_time)
        assert meta['FlipAngle'] == sequence.flip_angle
        assert meta.get('InversionTime') == (sequence.inversion_time or None)


def check_geometry(root: Path, scanner, contrast: str) -> None:
    """Compare the three sidecars of a contrast in a session with the voxels of their images."""
    protocol, stem = scanner.protocol(contrast), f'sub-01/ses-{scanner.label}/anat/sub-01_ses-{scanner.label}'
    axis, distance = protocol.slice_axis, protocol.voxel_size[protocol.slice_axis]
    truths = root / 'derivatives/truth'
    for base in (root / stem, *(truths / f'{stem}_desc-{desc}' for desc in ('noiseless', 'canonical'))):
        image = nib.load(f'{base}_{contrast}.nii.gz')
        meta = json.loads(Path(f'{base}_{contrast}.json').read_text())
        more, zooms = meta['SimulatedAcquisition'], np.array(image.header.get_zooms())
        assert zooms[axis] > distance  # it was enlarged
        assert meta['SpacingBetweenSlices'] == pytest.approx(zooms[axis], abs=1e-4)
        thickness = zooms[axis] * protocol.slice_thickness / distance
        assert meta['SliceThickness'] == pytest.approx(thickness, abs=1e-4)
        assert more['VoxelSize'] == pytest.approx(zooms, abs=1e-4)
        assert more['FieldOfView'] == pytest.approx(zooms * image.shape, abs=1e-2)
        assert (meta['MRAcquisitionType'], meta['SliceEncodingDirection'], meta['PhaseEncodingDirection']) == (
            protocol.acquisition_type, 'ijk'[axis], 'ijk'[protocol.phase_axis],
        )  # fmt: skip
        assert (more['SliceFactor'], more['SliceGap'], more['ReadoutAxis']) == (
            protocol.slice_factor, protocol.slice_gap, protocol.readout_axis,
        )  # fmt: skip
        # Gradients move the anatomy; all other errors are in the scan alone.
        assert more['GradientError'] == scanner.hardware.gradient_error
        errors = {
            'Snr',
            'Taper',
            'MotionDegrees',
            'OffResonance',
            'ReceiveStrength',
            'Storage',
            'Scale',
        } & more.keys()
        assert len(errors) == (7 if base == root / stem else 0)
        assert ('PartialFourier' in meta) is (base == root / stem)


@pytest.mark.parametrize('scanner', PRESETS[:3], ids=lambda scanner: scanner.label)
def test_sidecars_tell_the_voxels_that_the_images_have(heads: Path, scanner):
    for contrast in CONTRASTS:
        check_geometry(heads, scanner, contrast)


def test_sidecars_of_slices_with_gaps_tell_the_slices_that_the_images_have(tmp_path: Path):
    scanner = next(scanner for scanner in PRESETS if scanner.label == 'clinicL')
    out = simulate(tmp_path, subjects=1, scanners=[scanner], contrasts=['FLAIR'], resolution=RESOLUTION)
    check_geometry(out, scanner, 'FLAIR')
    # The canonical scanner is another machine, whatever the grid.
    stem = 'derivatives/truth/sub-01/ses-clinicL/anat/sub-01_ses-clinicL_desc-canonical_FLAIR.json'
    assert json.loads((out / stem).read_text())['ManufacturersModelName'] == PRESETS[0].model_name


def test_sidecars_of_a_protocol_at_its_own_resolution_are_its_own(tmp_path: Path):
    coarse = replace(PRESETS[2].protocol('T1w'), voxel_size=(5.0, 5.0, 10.0))
    scanner = replace(PRESETS[2], protocols=(coarse,))
    out = simulate(tmp_path, subjects=1, scanners=[scanner], resolution=0)
    meta = json.loads((out / 'sub-01/ses-eastC/anat/sub-01_ses-eastC_T1w.json').read_text())
    expected = scanner.sidecar('T1w')
    expected['SimulatedAcquisition']['FieldOfView'] = [210.0, 250.0, 220.0]
    assert meta == expected


def test_headers(heads: Path):
    for path in heads.rglob('*.nii.gz'):
        if path.name.endswith('_xfm.nii.gz'):
            continue
        image = nib.load(path)
        assert (image.header['qform_code'], image.header['sform_code']) == (1, 1), path
        assert image.header.get_xyzt_units()[0] == 'mm'
        assert nib.aff2axcodes(image.affine) == ('R', 'A', 'S')
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        depth = 2 * RESOLUTION if 'eastC' in path.name else RESOLUTION
        np.testing.assert_allclose(image.header.get_zooms(), (RESOLUTION, RESOLUTION, depth))
    assert nib.load(next(heads.glob('sub-*/ses-*/anat/*.nii.gz'))).get_data_dtype() == np.int16


def test_the_anatomy_of_a_person_is_the_same_in_every_scanner(heads: Path):
    def volumes(subject: str, scanner) -> np.ndarray:
        voxel = RESOLUTION**3 * scanner.protocol('T1w').slice_factor
        return np.array(
            [
                truth(heads, subject, scanner.label, f'label-{t}_probseg').sum() * voxel
                for t in ('CSF', 'GM', 'WM')
            ]
        )

    for subject in ('01', '02'):
        first = volumes(subject, PRESETS[0])
        for scanner in PRESETS[1:3]:
            np.testing.assert_allclose(volumes(subject, scanner), first, rtol=0.02)
    assert np.abs(volumes('01', PRESETS[0]) / volumes('02', PRESETS[0]) - 1).max() > 0.02


def test_the_truth_agrees_with_itself(heads: Path):
    fractions = np.stack([truth(heads, '01', 'southB', f'label-{t}_probseg') for t in ('GM', 'WM', 'CSF')])
    mask = truth(heads, '01', 'southB', 'desc-brain_mask').astype(bool)
    dseg = truth(heads, '01', 'southB', 'dseg')
    assert np.array_equal(mask, fractions.sum(axis=0) >= 0.5)
    assert np.array_equal(dseg > 0, mask)
    assert np.array_equal(dseg[mask], fractions.argmax(axis=0)[mask] + 1)
    rows = (heads / 'derivatives/truth/dseg.tsv').read_text().splitlines()
    assert [row.split('\t')[::2] for row in rows[1:]] == [['1', 'GM'], ['2', 'WM'], ['3', 'CSF'], ['7', 'L']]


def test_poses_differ_between_sessions(heads: Path):
    masks = [truth(heads, '01', scanner.label, 'desc-brain_mask') for scanner in PRESETS[:2]]
    assert (masks[0] != masks[1]).sum() > 100


def test_noiseless_contrasts_have_the_right_order(heads: Path):
    tissue = {
        name: truth(heads, '01', 'northA', f'label-{name}_probseg') > 0.9 for name in ('CSF', 'GM', 'WM')
    }
    t1w, t2w, flair = (
        {
            name: np.median(truth(heads, '01', 'northA', f'desc-noiseless_{c}')[where])
            for name, where in tissue.items()
        }
        for c in CONTRASTS
    )
    assert t1w['WM'] > t1w['GM'] > t1w['CSF']
    assert t2w['CSF'] > t2w['GM'] > t2w['WM']
    assert flair['CSF'] < 0.25 * min(flair['GM'], flair['WM'])


@pytest.mark.parametrize('scanner', PRESETS[:3], ids=lambda scanner: scanner.label)
def test_scans_are_the_noiseless_image_with_the_fields_and_the_noise_of_the_scanner(heads: Path, scanner):
    protocol, hardware = scanner.protocol('T1w'), scanner.hardware
    scan = read(heads / f'sub-01/ses-{scanner.label}/anat/sub-01_ses-{scanner.label}_T1w.nii.gz').astype(
        float
    )
    ideal = truth(heads, '01', scanner.label, 'desc-noiseless_T1w')
    sigma = protocol.scale / protocol.snr
    corner = scan[:6, :6, -6:]
    # The second moment of air, which ringing hardly reaches, is that of all coils.
    assert (corner**2).mean() == pytest.approx(2 * protocol.combined_coils * sigma**2, rel=0.15)
    bright = truth(heads, '01', scanner.label, 'label-WM_probseg') > 0.95
    ratio = scan[bright] / ideal[bright]
    most = hardware.receive_strength + hardware.transmit_deviation + 0.1
    assert abs(np.log(np.median(ratio))) < most
    assert (
        0.5 * hardware.receive_strength
        < np.log(np.percentile(ratio, 99) / np.percentile(ratio, 1))
        < 2 * most + 0.4
    )


def test_the_canonical_image_is_the_same_head_without_any_error(heads: Path):
    for scanner in PRESETS[:3]:
        image = truth(heads, '01', scanner.label, 'desc-canonical_T1w')
        parts = [truth(heads, '01', scanner.label, f'label-{t}_probseg') > 0.97 for t in ('GM', 'WM')]
        grey, white = (float(np.median(image[part])) for part in parts)
        assert white == pytest.approx(1, abs=0.15)  # people differ
        assert 0.5 < grey / white < 0.9
    north = truth(heads, '01', 'northA', 'desc-canonical_T1w') * PRESETS[0].protocol('T1w').scale
    np.testing.assert_allclose(north, truth(heads, '01', 'northA', 'desc-noiseless_T1w'), rtol=1e-3, atol=0.1)


def test_transforms_lead_from_a_scan_to_the_anatomy(heads: Path, small_head):
    """Points that are surely white matter in the scan must be so in the anatomy."""
    folder = heads / 'derivatives/truth/sub-01'
    wm = nib.load(folder / 'ses-northA/anat/sub-01_ses-northA_label-WM_probseg.nii.gz')
    places = np.argwhere(np.asarray(wm.dataobj) > 0.95)
    lps = np.array([-1, -1, 1])
    points = nib.affines.apply_affine(wm.affine, places) * lps
    lines = (
        (folder / 'ses-northA/anat/sub-01_ses-northA_from-orig_to-head_mode-points_xfm.txt')
        .read_text()
        .splitlines()
    )
    numbers = [float(word) for word in lines[3].split()[1:]]
    points = points @ np.reshape(numbers[:9], (3, 3)).T + numbers[9:]
    field = nib.load(folder / 'anat/sub-01_from-head_to-anatomy_mode-points_xfm.nii.gz')
    assert field.header.get_intent()[0] == 'vector'
    at = np.linalg.inv(field.affine) @ np.c_[points * lps, np.ones(len(points))].T
    vectors = np.asarray(field.dataobj)[:, :, :, 0]
    moved = points + np.stack(
        [ndimage.map_coordinates(vectors[..., k], at[:3], order=1) for k in range(3)], -1
    )
    at = np.linalg.inv(small_head.affine) @ np.c_[moved * lps, np.ones(len(moved))].T
    there = ndimage.map_coordinates(small_head.part('WM'), at[:3], order=1)
    astray = ndimage.map_coordinates(small_head.part('WM'), at[:3] + 4, order=1)
    assert there.mean() > 0.85
    assert there.mean() > astray.mean() + 0.15


def test_contrasts_on_grids_of_their_own_have_truth_of_their_own(tmp_path: Path):
    scanner = next(s for s in PRESETS if s.protocol('T2w').voxel_size != s.protocol('T1w').voxel_size)
    both = simulate(
        tmp_path / 'both', subjects=1, scanners=[scanner], contrasts=['T1w', 'T2w'], resolution=RESOLUTION
    )
    for contrast, desc in (('T1w', ''), ('T2w', 'desc-T2w_')):
        scan = nib.load(
            both / f'sub-01/ses-{scanner.label}/anat/sub-01_ses-{scanner.label}_{contrast}.nii.gz'
        )
        labels = truth(both, '01', scanner.label, f'{desc}dseg')
        assert scan.shape == labels.shape
        assert scan.header.get_zooms()[2] == pytest.approx(
            scanner.protocol(contrast).voxel_size[2]
            * RESOLUTION
            / min(scanner.protocol(contrast).voxel_size),
            rel=1e-5,
        )
    alone = simulate(
        tmp_path / 'alone', subjects=1, scanners=[scanner], contrasts=['T2w'], resolution=RESOLUTION
    )
    few, many = contents(alone), contents(both)
    assert all(few[name] == many[name] for name in few if name.endswith('.nii.gz'))


def test_label_maps_lesions_and_a_mass(label_map: Path, tmp_path: Path):
    out = simulate(
        tmp_path / 'ill', subjects=2, scanners=PRESETS[:1], labels=[label_map], resolution=RESOLUTION,
        lesions=30, mass_mm=14.0,
    )  # fmt: skip
    with (out / 'participants.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert [(row['anatomy'], row['lesions'], row['mass_mm']) for row in rows] == [('head', '30', '14')] * 2
    assert all(float(row['lesion_ml']) > 1 for row in rows)
    lesion = truth(out, '01', 'northA', 'label-lesion_mask') > 0
    assert lesion.any()
    assert (truth(out, '01', 'northA', 'dseg')[lesion] == 7).any()
    assert 'label maps' in (out / 'README').read_text()
    assert 'MNI152 template is copyright' not in (out / 'README').read_text()


def test_same_seed_same_files_other_seed_other_files(tmp_path: Path):
    options = {'subjects': 1, 'scanners': PRESETS[:1], 'resolution': RESOLUTION}
    one = contents(simulate(tmp_path / 'one', seed=1, **options))
    again = contents(simulate(tmp_path / 'again', seed=1, **options))
    other = contents(simulate(tmp_path / 'other', seed=2, **options))
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith('.nii.gz'))


def test_more_people_scanners_and_contrasts_leave_the_others_alone(heads: Path, tmp_path: Path):
    few = contents(
        simulate(
            tmp_path / 'few',
            subjects=1,
            scanners=PRESETS[1:2],
            contrasts=['T2w'],
            resolution=RESOLUTION,
            seed=5,
        )
    )
    many = contents(heads)
    images = [name for name in few if name.endswith('.nii.gz')]
    assert images
    assert all(few[name] == many[name] for name in images)


@pytest.mark.parametrize(
    'options',
    [
        {'subjects': 0},
        {'scanners': ()},
        {'scanners': (PRESETS[0], PRESETS[0])},
        {'contrasts': ('T1w', 'T1w')},
        {'contrasts': ('bold',)},
        {'resolution': -1.0},
        {'resolution': 11.0},
        {'resolution': float('nan')},
        {'seed': -1},
    ],
)
def test_senseless_requests_are_refused_before_anything_is_written(options: dict, tmp_path: Path):
    with pytest.raises(UsageError):
        simulate(tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_a_failed_write_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space'):
        simulate(tmp_path / 'out', subjects=1, scanners=PRESETS[:1], resolution=RESOLUTION)
    assert contents(tmp_path) == {}


def test_an_interrupted_data_set_is_finished_by_the_same_request_and_no_other(tmp_path: Path):
    """What results is, byte by byte, what one go gives; scans that are there are not simulated again."""
    request: dict = {
        'subjects': 2, 'scanners': PRESETS[:2], 'contrasts': ['T1w'], 'resolution': 6.0, 'seed': 4, 'head': True, 'lesions': 0,
        'mass_mm': 0.0, 'texture': True,
    }  # fmt: skip
    names: list[str] = []

    def stop_at_third(done: int, total: int, name: str) -> None:
        names.append(name)
        if done == 3:
            raise KeyboardInterrupt

    whole = simulate(tmp_path / 'whole', **request)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / 'out', **request, progress=stop_at_third)
    out = tmp_path / 'out'
    assert not (out / 'participants.tsv').exists()
    with pytest.raises(UsageError, match='unfinished'):
        prepare_folder(out, request=request_of(**{**request, 'seed': 5}))
    prepare_folder(out, request=request_of(**request))
    kept = {name: (out / name).stat().st_mtime_ns for name in contents(out) if name.startswith('sub-01')}
    more: list[tuple[int, int, str]] = []
    simulate(out, **request, progress=lambda *call: more.append(call))
    assert contents(out) == contents(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert [name for done, _, name in more if done > 3] == ['sub-02_ses-southB_T1w']
    assert more[-1][:2] == (4, 4)
    with pytest.raises(UsageError, match='not empty'):
        prepare_folder(out, request=request_of(**request))


def test_progress_counts_every_scan_and_brain_only_is_recorded(tmp_path: Path):
    calls: list[tuple[int, int, str]] = []
    simulate(
        tmp_path,
        subjects=1,
        scanners=PRESETS[:2],
        resolution=RESOLUTION,
        head=False,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 2, 'sub-01_ses-northA_T1w'), (2, 2, 'sub-01_ses-southB_T1w')]
    ideal = truth(tmp_path, '01', 'northA', 'desc-noiseless_T1w')
    brain = sum(truth(tmp_path, '01', 'northA', f'label-{name}_probseg') for name in ('CSF', 'GM', 'WM'))
    assert not ideal[brain == 0].any()
    stem = 'derivatives/truth/sub-01/ses-northA/anat/sub-01_ses-northA_desc-noiseless_T1w.json'
    assert json.loads((tmp_path / stem).read_text())['SkullStripped'] is True


def test_force_replaces_a_simulated_data_set_and_nothing_else(tmp_path: Path):
    foreign = tmp_path / 'study'
    (foreign / 'sub-01').mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(UsageError):
            prepare_folder(foreign, force=force)
    assert (foreign / 'sub-01').is_dir()
    (foreign / 'dataset_description.json').write_text(
        '{"Name": "a study", "GeneratedBy": [{"Name": "dcm2bids"}]}'
    )
    with pytest.raises(UsageError, match='other than a simulated'):
        prepare_folder(foreign, force=True)
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UsageError):
        prepare_folder(tmp_path / 'file', force=False)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[dict] = []

    def quick(out: Path, **options: object) -> Path:
        seen.append(options)
        return simulate(out, **{**options, 'resolution': RESOLUTION})

    monkeypatch.setattr(dataset, 'simulate', quick)
    out = str(tmp_path / 'heads')
    assert (
        main([out, '--subjects', '2', '--scanners', '1', '--resolution', '2.0', '--seed', '3']) == ExitCode.OK
    )
    assert (seen[0]['resolution'], seen[0]['seed'], seen[0]['head']) == (2.0, 3, True)
    assert main([out, '--subjects', '1', '--scanners', '1']) == ExitCode.USAGE
    assert 'not empty' in capsys.readouterr().err
    assert (tmp_path / 'heads' / 'sub-02').is_dir()
    assert main([out, '--subjects', '1', '--scanners', '1', '--force', '--brain-only']) == ExitCode.OK
    assert seen[-1]['head'] is False
    assert not (tmp_path / 'heads' / 'sub-02').exists()


@pytest.mark.parametrize(
    'wrong',
    [
        ['--subjects', '0'],
        ['--contrasts', 'PET'],
        ['--resolution', '-7'],
        ['--resolution', 'fine'],
        ['--draw', '1.5'],
        ['--seed', '-1'],
        [],
    ],
)
def test_wrong_command_lines_exit_with_the_usage_code(wrong: list[str], tmp_path: Path):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / 'out'), *wrong] if wrong else [])
    assert stop.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        (['--scanners', '99'], 'built-in scanners'),
        (['--scanners', 'nothA'], 'northA'),
        (['--scanners', 'gone.json'], 'gone.json'),
        (['--scanners', 'northA', 'northA'], 'named twice'),
        (['--labels', 'gone.nii.gz'], 'no label map'),
        (['--resolution', '50'], 'between 0 and 10'),
    ],
)
def test_wrong_requests_say_what_is_wrong(wrong, words, tmp_path, capsys):
    assert main([str(tmp_path / 'out'), *wrong]) == ExitCode.USAGE
    assert words in capsys.readouterr().err


def test_scanners_by_number_name_file_and_chance(tmp_path, monkeypatch):
    seen: list[dict] = []
    monkeypatch.setattr(dataset, 'simulate', lambda out, **options: seen.append(options))
    own = replace(PRESETS[0], label='mine').to_dict()
    (tmp_path / 'mine.json').write_text(json.dumps([own]))
    main(
        [
            str(tmp_path / 'out'),
            '--scanners',
            '2',
            'westD',
            str(tmp_path / 'mine.json'),
            '--draw',
            '2',
            '--seed',
            '4',
        ]
    )
    labels = [scanner.label for scanner in seen[0]['scanners']]
    assert labels == ['northA', 'southB', 'westD', 'mine', 'drawn01', 'drawn02']
    main([str(tmp_path / 'out'), '--scanners', 'all', '--draw', '1', '--seed', '4'])
    assert len(seen[1]['scanners']) == len(PRESETS) + 1
    assert seen[1]['scanners'][-1] == seen[0]['scanners'][-2]


def test_scanners_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--list-scanners'])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PRESETS)
    assert all(scanner.label in line for scanner, line in zip(PRESETS, lines, strict=True))


def test_without_texture_tissue_is_the_same_everywhere(tmp_path: Path):
    spread = {}
    for texture in (True, False):
        out = simulate(
            tmp_path / str(texture), subjects=1, scanners=PRESETS[:1], resolution=2.5, texture=texture
        )
        pure = truth(out, '01', 'northA', 'label-WM_probseg') > 0.999
        white = truth(out, '01', 'northA', 'desc-noiseless_T1w')[pure]
        assert len(white) > 100
        spread[texture] = np.std(white) / np.mean(white)
    assert spread[False] < 0.2 * spread[True]
