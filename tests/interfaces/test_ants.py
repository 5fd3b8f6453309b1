"""Stock nipype interfaces on antspyx and on real ANTs: command lines, and answers whose truth is known."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.nodes import NodeExecutionError
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.imaging import bias, grids
from bidsharm.interfaces import ants, isolated
from bidsharm.interfaces.antspyx import TOOLS

#: The stages of the app, with fewer iterations on smaller images.
LINEAR = {
    'dimension': 3,
    'float': True,
    'transforms': ['Rigid'],
    'transform_parameters': [(0.1,)],
    'metric': ['MI'],
    'metric_weight': [1.0],
    'radius_or_number_of_bins': [32],
    'sampling_strategy': ['None'],
    'sampling_percentage': [1.0],
    'number_of_iterations': [[100, 50]],
    'convergence_threshold': [1e-6],
    'convergence_window_size': [10],
    'shrink_factors': [[2, 1]],
    'smoothing_sigmas': [[1.0, 0.0]],
    'sigma_units': ['vox'],
    'use_histogram_matching': False,
    'winsorize_lower_quantile': 0.005,
    'winsorize_upper_quantile': 0.995,
    'write_composite_transform': True,
    'random_seed': 1,
    'initial_moving_transform_com': 1,
    'num_threads': 1,
}
SYN = {
    **LINEAR,
    'transforms': ['Rigid', 'SyN'],
    'transform_parameters': [(0.1,), (0.1, 3.0, 0.0)],
    'metric': ['MI', 'CC'],
    'metric_weight': [1.0, 1.0],
    'radius_or_number_of_bins': [32, 2],
    'sampling_strategy': ['None', 'None'],
    'sampling_percentage': [1.0, 1.0],
    'number_of_iterations': [[100, 50], [20, 10]],
    'convergence_threshold': [1e-6, 1e-6],
    'convergence_window_size': [10, 10],
    'shrink_factors': [[2, 1], [2, 1]],
    'smoothing_sigmas': [[1.0, 0.0], [1.0, 0.0]],
    'sigma_units': ['vox', 'vox'],
}

ROTATION, SHIFT = (8.0, -5.0, 10.0), (9.0, -6.0, 4.0)


def warp(
    image: str, reference: str, transforms: list[str], cwd: Path, how: str = 'Linear', **more: Any
) -> str:
    cwd.mkdir(parents=True, exist_ok=True)
    tool = ants.ApplyTransforms(
        dimension=3, input_image=image, reference_image=reference, transforms=transforms, interpolation=how,
        float=True, num_threads=1, **more,
    )  # fmt: skip
    return tool.run(cwd=str(cwd)).outputs.output_image


def ramps(folder: Path, like: str, save_image) -> list[str]:
    """Write the world coordinates of an image as three pictures."""
    image = nib.load(like)
    world = np.tensordot(image.affine[:3, :3], np.indices(image.shape), axes=1) + image.affine[:3, 3].reshape(
        3, 1, 1, 1
    )
    return [
        save_image(folder / f'{axis}.nii', part.astype(np.float32), image.affine)
        for axis, part in zip('xyz', world, strict=True)
    ]


@pytest.fixture(scope='module')
def pair(tmp_path_factory, make_blobs, make_rigid, save_image) -> SimpleNamespace:
    """A picture and the same picture turned and moved: resampled onto a grid that knows nothing of it."""
    folder = tmp_path_factory.mktemp('pair')
    data, labels, affine = make_blobs()
    truth = make_rigid(ROTATION, SHIFT)  # world of the fixed picture to world of the moving one
    back = np.linalg.inv(truth)
    moving = grids.resample(data, affine, data.shape, back @ affine, order=3)
    moving_labels = grids.resample(labels, affine, data.shape, back @ affine, order=0).astype(np.uint8)
    return SimpleNamespace(
        fixed=save_image(folder / 'fixed.nii', data, affine),
        moving=save_image(folder / 'moving.nii', moving, affine),
        labels=save_image(folder / 'labels.nii', labels, affine),
        moving_labels=save_image(folder / 'moving_labels.nii', moving_labels, affine),
        truth=truth,
        body=ndimage.binary_erosion(data > 30, iterations=3),
        world=np.tensordot(affine[:3, :3], np.indices(data.shape), axes=1)
        + affine[:3, 3].reshape(3, 1, 1, 1),
    )


@pytest.fixture
def register(pair, tmp_path, without_real_ants) -> Callable[..., Any]:
    def run(**options: Any) -> Any:
        tool = ants.Registration(fixed_image=pair.fixed, moving_image=pair.moving, **options)
        return tool.run(cwd=str(tmp_path)).outputs

    return run


# Command lines


def test_stand_ins_are_called_through_this_python(without_real_ants, pair, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tool = ants.N4BiasFieldCorrection(input_image=pair.fixed)
    words = shlex.split(tool.cmdline)
    assert words[:4] == [sys.executable, '-m', 'bidsharm.interfaces.antspyx', 'N4BiasFieldCorrection']
    assert '--input-image' in words


def test_the_number_of_threads_is_no_part_of_the_identity_of_a_result(without_real_ants, pair):
    hashes = {
        ants.ApplyTransforms(
            input_image=pair.fixed, reference_image=pair.fixed, transforms=['identity'], num_threads=threads
        ).inputs.get_hashval()[1]
        for threads in (1, 2, 8)
    }
    assert len(hashes) == 1
    other = ants.ApplyTransforms(
        input_image=pair.moving, reference_image=pair.fixed, transforms=['identity'], num_threads=1
    )
    assert other.inputs.get_hashval()[1] not in hashes


def test_threads_reach_the_tool(without_real_ants, pair):
    tool = ants.Registration(fixed_image=pair.fixed, moving_image=pair.moving, **{**LINEAR, 'num_threads': 3})
    assert tool.inputs.environ['NSLOTS'] == '3'


@pytest.mark.parametrize('folder', ['with space', 'a,b[1]', "student's $HOME; (x)", 'Größe é'])
def test_file_names_may_hold_any_sign(folder, pair, tmp_path, without_real_ants, save_image):
    """What is run beside a plain folder must give the same images and transforms."""
    answers = []
    for home in (tmp_path / 'plain', tmp_path / folder):
        home.mkdir()
        fixed, moving, mask = (home / f'{name}.nii' for name in ('fixed', 'moving', 'mask'))
        shutil.copy(pair.fixed, fixed)
        shutil.copy(pair.moving, moving)
        image = nib.load(fixed)
        save_image(mask, (image.get_fdata() > 30).astype(np.uint8), image.affine)
        n4 = ants.N4BiasFieldCorrection(
            input_image=str(fixed), mask_image=str(mask), dimension=3, n_iterations=[3], shrink_factor=2,
            convergence_threshold=1e-6, save_bias=True, num_threads=1,
        )  # fmt: skip
        field = n4.run(cwd=str(home)).outputs
        tool = ants.Registration(
            fixed_image=str(fixed), moving_image=[str(moving)],
            **{**LINEAR, 'number_of_iterations': [[5, 0]]},
        )  # fmt: skip
        found = tool.run(cwd=str(home)).outputs
        assert tool.inputs.moving_image == [str(moving)]  # what was set stays set
        warped = warp(str(moving), str(fixed), [found.composite_transform, 'identity'], home)
        for file in (field.output_image, field.bias_image, found.composite_transform, warped):
            assert Path(file).parent == home
        answers.append(
            [nib.load(file).get_fdata() for file in (field.output_image, field.bias_image, warped)]
        )
    for plain, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(plain, other)


# Registration


def test_a_known_rotation_and_shift_are_recovered(register, pair, save_image, tmp_path):
    """The transform, as a map of points, against the one that made the picture."""
    found = register(**LINEAR)
    # A picture of world coordinates, warped onto the fixed grid, says where each point comes from.
    coordinates = np.stack([
        nib.load(warp(ramp, pair.fixed, [found.composite_transform], tmp_path / f'warp{axis}')).get_fdata()
        for axis, ramp in enumerate(ramps(tmp_path / 'ramps', pair.moving, save_image))
    ])  # fmt: skip
    expected = np.tensordot(pair.truth[:3, :3], pair.world, axes=1) + pair.truth[:3, 3].reshape(3, 1, 1, 1)
    moved = np.linalg.norm(expected - pair.world, axis=0)[pair.body]
    error = np.linalg.norm(coordinates - expected, axis=0)[pair.body]
    assert moved.min() > 4
    assert error.mean() < 0.3  # a tenth of a voxel
    assert error.max() < 0.8


def test_the_moving_picture_comes_to_lie_on_the_fixed_one(register, pair, tmp_path):
    found = register(**LINEAR)
    fixed = nib.load(pair.fixed).get_fdata()
    warped = nib.load(warp(pair.moving, pair.fixed, [found.composite_transform], tmp_path / 'a')).get_fdata()
    assert np.corrcoef(fixed.ravel(), nib.load(pair.moving).get_fdata().ravel())[0, 1] < 0.9
    assert np.corrcoef(fixed.ravel(), warped.ravel())[0, 1] > 0.99
    # And the other way round.
    back = warp(pair.fixed, pair.moving, [found.inverse_composite_transform], tmp_path / 'b')
    moving = nib.load(pair.moving).get_fdata()
    assert np.corrcoef(moving.ravel(), nib.load(back).get_fdata().ravel())[0, 1] > 0.99


def test_labels_stay_labels(register, pair, tmp_path):
    found = register(**LINEAR)
    file = warp(
        pair.moving_labels,
        pair.fixed,
        [found.composite_transform],
        tmp_path / 'labels',
        how='NearestNeighbor',
    )
    warped, truth = np.asarray(nib.load(file).dataobj), np.asarray(nib.load(pair.labels).dataobj)
    assert set(np.unique(warped)) == set(np.unique(truth)) == {0, 10, 20, 30, 40, 50}
    for label in (10, 20, 30, 40, 50):
        centres = [np.argwhere(picture == label).mean(axis=0) * 3 for picture in (warped, truth)]
        assert np.linalg.norm(centres[0] - centres[1]) < 1.0, label


@pytest.mark.parametrize('stages', [LINEAR, SYN], ids=['rigid', 'syn'])
def test_composite_transforms_are_inverse_to_each_other(stages, register, pair, save_image, tmp_path):
    found = register(**stages)
    both = [found.composite_transform, found.inverse_composite_transform]
    assert len(set(both)) == 2
    for axis, ramp in enumerate(ramps(tmp_path / 'ramps', pair.fixed, save_image)):
        there_and_back = nib.load(warp(ramp, pair.fixed, both, tmp_path / f'both{axis}')).get_fdata()
        one_way = nib.load(warp(ramp, pair.fixed, both[:1], tmp_path / f'one{axis}')).get_fdata()
        truth = nib.load(ramp).get_fdata()
        assert np.abs(there_and_back - truth)[pair.body].max() < 0.5
        assert np.abs(there_and_back - truth)[pair.body].mean() < 0.1
        assert np.abs(one_way - truth)[pair.body].mean() > 1


def test_a_warp_that_no_rotation_explains_needs_syn(tmp_path, make_blobs, save_image, without_real_ants):
    data, _, affine = make_blobs()
    x, y, z = np.indices(data.shape, dtype=float)
    bend = 1.5 * np.sin(x / 5)
    moving = ndimage.map_coordinates(data, [x, y + bend, z - 0.5 * bend], order=3)
    fixed_file, moving_file = (
        save_image(tmp_path / f'{name}.nii', picture.astype(np.float32), affine)
        for name, picture in (('fixed', data), ('moving', moving))
    )
    agreement = []
    for name, stages in (('rigid', LINEAR), ('syn', SYN)):
        folder = tmp_path / name
        folder.mkdir()
        tool = ants.Registration(fixed_image=fixed_file, moving_image=moving_file, **stages)
        found = tool.run(cwd=str(folder)).outputs
        warped = nib.load(warp(moving_file, fixed_file, [found.composite_transform], folder)).get_fdata()
        agreement.append(np.sqrt(np.mean((warped - data)[data > 30] ** 2)))
    assert agreement[1] < 0.6 * agreement[0]


def test_the_same_seed_gives_the_same_transform(pair, tmp_path, without_real_ants):
    sampled = {**LINEAR, 'sampling_strategy': ['Random'], 'sampling_percentage': [0.25]}
    pictures = []
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        tool = ants.Registration(fixed_image=pair.fixed, moving_image=pair.moving, **sampled)
        found = tool.run(cwd=str(tmp_path / name)).outputs
        file = warp(pair.moving, pair.fixed, [found.composite_transform], tmp_path / name)
        pictures.append(nib.load(file).get_fdata())
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_a_picture_with_several_volumes_is_warped_volume_by_volume(
    pair, save_image, tmp_path, without_real_ants
):
    image = nib.load(pair.fixed)
    data = image.get_fdata()
    stack = np.stack([data, 2 * data, 100 - data], axis=-1).astype(np.float32)
    file = save_image(tmp_path / 'stack.nii', stack, image.affine)
    smaller = save_image(tmp_path / 'grid.nii', data[4:20, 4:20, 4:20], image.affine @ _shift(4))
    result = nib.load(warp(file, smaller, ['identity'], tmp_path / 'out', input_image_type=3)).get_fdata()
    np.testing.assert_allclose(result, stack[4:20, 4:20, 4:20], atol=1e-3)


def _shift(count: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = count
    return matrix


# N4


def test_n4_takes_a_known_field_out(head, save_image, tmp_path, without_real_ants):
    """The chain of the app: coarse copy, N4, field back on the scan."""
    x, y, z = (np.linspace(-1, 1, size) for size in head.data.shape)
    log_field = (
        0.35 * y[None, :, None] + 0.25 * z[None, None, :] * x[:, None, None] - 0.2 * z[None, None, :] ** 2
    )
    field = np.exp(log_field - log_field[head.mask].mean())
    biased = (head.data * field).astype(np.float32)
    copy = bias.coarse_copy(biased, head.mask, head.affine)
    tool = ants.N4BiasFieldCorrection(
        dimension=3, input_image=save_image(tmp_path / 'coarse.nii', copy.data, copy.affine),
        mask_image=save_image(tmp_path / 'mask.nii', copy.mask, copy.affine), save_bias=True, shrink_factor=1,
        bspline_fitting_distance=200.0, n_iterations=[20, 20], convergence_threshold=1e-7, num_threads=1,
    )  # fmt: skip
    found = nib.load(tool.run(cwd=str(tmp_path)).outputs.bias_image)
    corrected, estimate = bias.apply_field(
        biased, head.mask, head.affine, np.asarray(found.dataobj), found.affine, shift=copy.shift
    )
    inside = head.mask

    def unevenness(image: np.ndarray) -> float:
        """Spread of white matter over the brain, by the ratio to what it should be."""
        white = (head.fractions[2] > 0.95) & inside
        ratio = ndimage.gaussian_filter(np.where(white, image / np.maximum(head.ideal, 1), 0), 2)
        weight = ndimage.gaussian_filter(white.astype(float), 2)
        return float(np.std((ratio / np.maximum(weight, 1e-6))[white]))

    assert unevenness(biased) > 0.1
    assert unevenness(corrected) < 0.4 * unevenness(biased)
    assert np.corrcoef(np.log(estimate[inside]), np.log(field[inside]))[0, 1] > 0.95
    assert np.median(corrected[inside]) == pytest.approx(np.median(biased[inside]), rel=0.1)


def test_what_a_failing_tool_said_is_repeated(save_image, tmp_path, without_real_ants):
    file = save_image(tmp_path / 'x.nii', np.ones((8, 8, 8), np.float32), np.eye(4))
    (tmp_path / 'broken.h5').write_bytes(b'no transform')
    with pytest.raises(ScanError) as caught:
        warp(file, file, [str(tmp_path / 'broken.h5')], tmp_path / 'out')
    assert 'antsApplyTransforms ended with code 1' in caught.value.what
    assert 'suffix to an unsupported type' in caught.value.what


def test_a_crash_of_a_tool_is_named(tmp_path, without_real_ants):
    """The library is not fond of files that are no images."""
    (tmp_path / 'text.nii').write_text('no image')
    with pytest.raises(ScanError) as caught:
        ants.N4BiasFieldCorrection(input_image=str(tmp_path / 'text.nii')).run(cwd=str(tmp_path))
    assert 'N4BiasFieldCorrection' in caught.value.what
    assert 'not recognized as a supported image format' in caught.value.what


# Real ANTs

FAKE = """\
#!{python}
import sys
from pathlib import Path
tool, words = Path(sys.argv[0]).name, sys.argv[1:]
if words == ['--version']:
    print({version!r})
    sys.exit(0)
with open({log!r}, 'a') as log:
    print(tool, *words, sep='\\t', file=log)
if {code}:
    print('out of luck', file=sys.stderr)
    sys.exit({code})
start = words.index('--output') + 1
out = words[start:words.index(']', start)] if words[start] == '[' else words[start:start + 1]
out = [name.strip('[], ') for name in ' '.join(out).replace('[', ' ').replace(',', ' ').split()]
names = [out[0] + 'Composite.h5', out[0] + 'InverseComposite.h5'] if tool == 'antsRegistration' else out
for name in names:
    Path(name).write_text(tool)
"""


@pytest.fixture
def install(tmp_path, monkeypatch, fresh_ants) -> Callable[..., Path]:
    """Return a function that puts programs on an otherwise empty PATH; their log is returned."""

    def make(
        *tools: str, version: str = 'ANTs Version: 2.5.4.post12\nCompiled: Jan  1 2024', code: int = 0
    ) -> Path:
        folder, log = tmp_path / 'bin', tmp_path / 'log'
        folder.mkdir()
        for tool in tools:
            file = folder / tool
            file.write_text(FAKE.format(python=sys.executable, version=version, log=str(log), code=code))
            file.chmod(0o755)
        monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
        return log

    return make


def test_real_ants_is_used_where_it_is_installed(install, pair, tmp_path, monkeypatch):
    log = install(*TOOLS)
    monkeypatch.chdir(tmp_path)
    assert ants.has_real_ants()
    assert ants.ants_version() == 'ANTs 2.5.4.post12'
    ants.N4BiasFieldCorrection(input_image=pair.fixed, save_bias=True, dimension=3).run(cwd=str(tmp_path))
    found = ants.Registration(fixed_image=pair.fixed, moving_image=pair.moving, **LINEAR).run(
        cwd=str(tmp_path)
    )
    assert Path(found.outputs.composite_transform).read_text() == 'antsRegistration'
    warped = warp(pair.moving, pair.fixed, [found.outputs.composite_transform], tmp_path)
    assert Path(warped).read_text() == 'antsApplyTransforms'
    calls = [line.split('\t') for line in log.read_text().splitlines()]
    assert [call[0] for call in calls] == ['N4BiasFieldCorrection', 'antsRegistration', 'antsApplyTransforms']
    text = ' '.join(calls[1])
    for part in (
        '--metric MI[',
        '--transform Rigid[ 0.1 ]',
        '--random-seed 1',
        '--write-composite-transform 1',
    ):
        assert part in text
    assert 'antspyx' not in log.read_text()


@pytest.mark.parametrize('missing', TOOLS)
def test_a_part_of_ants_is_not_mixed_with_the_stand_ins(missing, install):
    install(*(tool for tool in TOOLS if tool != missing))
    assert not ants.has_real_ants()
    assert ants.ants_version().startswith('antspyx ')
    for kind in (ants.Registration, ants.ApplyTransforms, ants.N4BiasFieldCorrection):
        assert kind().cmd.split()[1:3] == ['-m', 'bidsharm.interfaces.antspyx']


@pytest.mark.parametrize('version', ['', 'something else'])
def test_an_ants_that_does_not_tell_its_version(version, install):
    install(*TOOLS, version=version)
    assert ants.ants_version() == 'ANTs (unknown version)'


def test_an_ants_that_does_not_start(install, tmp_path):
    install(*TOOLS)
    (tmp_path / 'bin' / 'antsRegistration').write_text('#!/no/such/interpreter\n')
    assert ants.ants_version() == 'ANTs (unknown version)'


def test_without_ants_the_stand_ins_are_named(install):
    install()
    assert not ants.has_real_ants()
    assert ants.ants_version().startswith('antspyx 0.')


@pytest.mark.parametrize(('code', 'words'), [(3, 'code 3'), (139, 'SIGSEGV'), (137, 'memory ran out')])
def test_a_failure_of_real_ants_is_explained(code, words, install, pair, tmp_path):
    install(*TOOLS, code=code)
    with pytest.raises(ScanError) as caught:
        ants.N4BiasFieldCorrection(input_image=pair.fixed).run(cwd=str(tmp_path))
    assert words in caught.value.what
    assert 'out of luck' in caught.value.what


HANGING = """\
#!/bin/sh
# As a wrapper around a container does: the shell waits for a program that inherits its output.
echo getting ready
sleep 300 &
echo $! > {pid}
wait
"""


def test_a_tool_that_hangs_is_stopped_with_what_it_has_started(install, pair, tmp_path, monkeypatch):
    install(*TOOLS)
    pid = tmp_path / 'pid'
    (tmp_path / 'bin' / TOOLS[0]).write_text(HANGING.format(pid=pid))
    monkeypatch.setattr(isolated, 'STEP_LIMIT_S', 2)
    with pytest.raises(ScanError) as caught:
        ants.N4BiasFieldCorrection(input_image=pair.fixed, dimension=3).run(cwd=str(tmp_path))
    assert 'N4BiasFieldCorrection took more than 2 s' in caught.value.what
    assert (
        not psutil.pid_exists(int(pid.read_text()))
        or psutil.Process(int(pid.read_text())).status() == 'zombie'
    )


def test_a_node_says_that_its_tool_hung(install, pair, tmp_path, monkeypatch):
    install(*TOOLS)
    (tmp_path / 'bin' / TOOLS[0]).write_text('#!/bin/sh\nexec sleep 300\n')
    monkeypatch.setattr(isolated, 'STEP_LIMIT_S', 0.5)
    tool = ants.N4BiasFieldCorrection(input_image=pair.fixed, dimension=3)
    with pytest.raises(NodeExecutionError, match=r'N4BiasFieldCorrection took more than 0\.5 s'):
        pe.Node(tool, name='n4', base_dir=str(tmp_path / 'work')).run()


def test_real_ants_that_does_not_tell_its_version(install, pair, tmp_path):
    install(*TOOLS, version='something else')
    tool = ants.N4BiasFieldCorrection(input_image=pair.fixed, dimension=3)
    assert tool.version is None
    assert tool.run(cwd=str(tmp_path)).outputs.output_image


def test_a_crash_by_a_signal_is_named(install, pair, tmp_path):
    install(*TOOLS)
    (tmp_path / 'bin' / TOOLS[0]).write_text('#!/bin/sh\necho loading\nkill -SEGV $$\n')
    with pytest.raises(ScanError) as caught:
        ants.N4BiasFieldCorrection(input_image=pair.fixed, dimension=3).run(cwd=str(tmp_path))
    assert 'was ended by SIGSEGV' in caught.value.what
    assert 'loading' in caught.value.what


def test_a_tool_that_writes_nothing_is_named(install, pair, tmp_path):
    install(*TOOLS)
    (tmp_path / 'bin' / TOOLS[0]).write_text('#!/bin/sh\nexit 0\n')
    with pytest.raises(ScanError) as caught:
        ants.N4BiasFieldCorrection(input_image=pair.fixed, dimension=3).run(cwd=str(tmp_path))
    assert 'N4BiasFieldCorrection ended without an error but did not write' in caught.value.what
    assert '.nii' in caught.value.what
    assert 'disk is full' in caught.value.fix
