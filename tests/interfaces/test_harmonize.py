"""The harmonize node: what it records, what it says when a method fails, and targets that are used again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
from nipype.pipeline import engine as pe

from bidsharm.errors import ConfigurationError, MissingNeed, NotServed, ScanError, UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import (
    Canonical,
    Card,
    Harmonized,
    Harmonizer,
    Reference,
    Scan,
    Site,
    Target,
)
from bidsharm.interfaces import harmonize
from bidsharm.interfaces.harmonize import FitTarget, HarmonizeScan, fit_files, harmonize_files, harmonize_scan


class Toy(Harmonizer):
    """Double the intensities; by ``mood``, misbehave instead."""

    card = Card(name='toy', title='Twice as bright', paper='None.')
    mood: ClassVar[str] = 'good'

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        if self.mood == 'refuses':
            raise NotServed('A toy does not serve this.', where=scan.name, fix='Take another.')
        image, deviation = 2 * scan.data, 0.5 * np.ones_like(scan.data)
        if self.mood == 'nan':
            image = np.where(scan.mask, np.nan, image)
        if self.mood == 'unsure how unsure':
            deviation[scan.mask] = np.inf
        return Harmonized(image, deviation, {'shown': self.card.geometry})


class GridToy(Toy):
    card = Card(name='grid-toy', title='Twice as bright, at 1 mm', paper='None.', geometry='grid')
    seen: ClassVar[dict[str, Any]] = {}

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        type(self).seen = {
            'shape': scan.data.shape, 'affine': scan.affine, 'tissue': scan.tissue, 'mask': scan.mask,
            'outside': float(np.abs(scan.data[~scan.mask]).max()), 'name': scan.name, 'site': scan.site,
        }  # fmt: skip
        return super().harmonize(scan, target)


@pytest.fixture
def toys(monkeypatch):
    known = registry.get
    mine = {'toy': Toy, 'grid-toy': GridToy}
    monkeypatch.setattr(registry, 'get', lambda name: mine.get(name) or known(name))


@pytest.fixture
def request_for(head_files, tmp_path):
    """Return a function that gives a request as the node writes it."""

    def make(harmonizer: str, **more: Any) -> dict[str, Any]:
        request = {
            'image': head_files['brain'], 'mask': head_files['mask'], 'tissue': head_files['tissue'],
            'contrast': 'T1w', 'name': 'sub-01_T1w', 'site': 'A', 'harmonizer': harmonizer, 'target': 'canonical',
            'model_dir': '', 'execution': {'device': 'cpu', 'seed': 0}, 'out_file': str(tmp_path / 'harmonized.nii'),
        }  # fmt: skip
        return json.loads(json.dumps({**request, **more}))

    return make


@pytest.fixture
def fit_inputs(head_files, tmp_path) -> dict[str, Any]:
    """Two sites that differ by a factor of 3."""
    return {
        'images': [head_files['brain'], head_files['other']],
        'masks': [head_files['mask']] * 2,
        'tissues': [head_files['tissue']] * 2,
        'contrasts': ['T1w', 'T1w'],
        'names': ['sub-01_T1w', 'sub-02_T1w'],
        'sites': ['A', 'B'],
        'harmonizer': 'histogram',
        'target': 'site:B',
        'out_dir': str(tmp_path / 'model'),
        'execution': {'device': 'cpu', 'seed': 0},
    }


def fit_request(inputs: dict[str, Any]) -> dict[str, Any]:
    keys = {'images': 'image', 'masks': 'mask', 'tissues': 'tissue', 'contrasts': 'contrast', 'names': 'name', 'sites': 'site'}  # fmt: skip
    rows = [
        dict(zip(keys.values(), row, strict=True)) for row in zip(*(inputs[key] for key in keys), strict=True)
    ]
    return {'scans': rows, **{key: inputs[key] for key in ('harmonizer', 'target', 'out_dir', 'execution')}}


def test_targets_as_words():
    assert harmonize.parse_target('canonical') == Canonical()
    assert harmonize.parse_target('site:north:2') == Site('north:2')
    assert harmonize.parse_target('reference:/data/a:b.nii.gz') == Reference('/data/a:b.nii.gz')


def test_scan_is_read_as_it_was_written(head, request_for):
    scan = harmonize.read_scan(request_for('robust'))
    np.testing.assert_array_equal(scan.mask, head.mask)
    np.testing.assert_array_equal(scan.data, np.where(head.mask, head.data, 0))
    assert scan.mask.dtype == bool
    np.testing.assert_allclose(scan.tissue, head.fractions * head.mask, atol=1e-6)
    np.testing.assert_allclose(scan.affine, head.affine, atol=1e-5)
    assert (scan.contrast, scan.name, scan.site) == ('T1w', 'sub-01_T1w', 'A')
    assert harmonize.read_scan(request_for('robust', tissue=None)).tissue is None


# The node, in a process of its own


@pytest.fixture(scope='module')
def done(head_files, tmp_path_factory) -> SimpleNamespace:
    cwd = tmp_path_factory.mktemp('node')
    node = HarmonizeScan(
        in_file=head_files['brain'], mask_file=head_files['mask'], tissue=head_files['tissue'], contrast='T1w',
        name='sub-01_T1w', site='A', harmonizer='robust',
        execution={'device': 'cpu', 'precision': 'float32', 'seed': 4},
    )  # fmt: skip
    return SimpleNamespace(outputs=node.run(cwd=str(cwd)).outputs, cwd=cwd, node=node)


def test_intensities_are_those_of_the_method(done, head):
    image = nib.load(done.outputs.out_file)
    data = np.asarray(image.dataobj)
    np.testing.assert_allclose(
        data[head.mask], head.data[head.mask] / np.percentile(head.data[head.mask], 90), rtol=1e-5
    )
    assert not data[~head.mask].any()
    np.testing.assert_allclose(image.affine, head.affine, atol=1e-5)
    assert Path(done.outputs.out_file).parent == done.cwd


def test_record_tells_where_and_how_long(done, head):
    record = done.outputs.record
    execution = record['execution']
    assert execution['device'] == 'cpu'
    assert execution['precision'] == 'float32'
    assert execution['steps'] == []
    assert 0 < execution['seconds'] < 600
    assert record['target_quantiles'] is None  # nothing was learnt
    assert record['details']['scale'] == pytest.approx(np.percentile(head.data[head.mask], 90), rel=1e-6)
    json.dumps(record, allow_nan=False)


def test_sidecar_tells_what_was_done_but_not_when(done):
    """Two runs must write the same sidecar, so there is no time in it."""
    fields = done.outputs.sidecar['Harmonization']
    assert fields['Method'] == 'robust'
    assert fields['Target'] == 'canonical'
    assert fields['Device'] == 'cpu'
    assert fields['Seed'] == 4
    assert fields['CanDrawNewStructure'] is False
    assert 'seconds' not in json.dumps(fields).lower()
    assert 'ModelDigest' not in fields  # empty fields are left out
    assert '' not in fields.values()


def test_a_failing_method_is_a_readable_error(head_files, tmp_path):
    """A brain of one intensity cannot be scaled; the message is the method's own, with the scan's name."""
    image = nib.load(head_files['mask'])
    flat = str(tmp_path / 'flat.nii')
    nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) * 50, image.affine).to_filename(flat)
    node = HarmonizeScan(
        in_file=flat, mask_file=head_files['mask'], contrast='T1w', name='sub-07_T1w', harmonizer='zscore'
    )
    with pytest.raises(ScanError) as caught:
        node.run(cwd=str(tmp_path))
    assert caught.value.where == 'sub-07_T1w'
    assert 'same intensity (50)' in caught.value.what
    assert caught.value.fix
    assert not (tmp_path / 'harmonized.nii').exists()


def test_place_of_a_bundle_and_of_work_are_no_part_of_the_identity(head_files):
    common = {
        'in_file': head_files['brain'],
        'mask_file': head_files['mask'],
        'contrast': 'T1w',
        'harmonizer': 'nyul',
    }

    def identity(**more: Any) -> str:
        return HarmonizeScan(**common, **more).inputs.get_hashval()[1]

    assert (
        identity() == identity(model_dir='/some/where') == identity(use_gpu=True) == identity(num_threads=4)
    )
    assert identity() != identity(model_digest='abc')
    assert identity() != identity(weights_digest='abc')
    assert identity() != identity(target='site:A')


# Targets


@pytest.fixture(scope='module')
def learnt(head_files, tmp_path_factory) -> SimpleNamespace:
    cwd = tmp_path_factory.mktemp('fit')
    node = FitTarget(
        images=[head_files['brain'], head_files['other']], masks=[head_files['mask']] * 2,
        tissues=[head_files['tissue']] * 2, contrasts=['T1w', 'T1w'], names=['sub-01_T1w', 'sub-02_T1w'],
        sites=['A', 'B'], harmonizer='histogram', target='site:B', out_dir=str(cwd / 'model'),
        execution={'device': 'cpu', 'seed': 0},
    )  # fmt: skip
    return SimpleNamespace(record=node.run(cwd=str(cwd)).outputs.record, folder=cwd / 'model')


def test_a_site_is_learnt_and_aimed_at(learnt, request_for, head):
    """B is A three times as bright, so A becomes three times as bright."""
    assert learnt.record['scans'] == ['sub-02_T1w']
    answer = harmonize_files(request_for('histogram', model_dir=str(learnt.folder), target='site:B'))
    result = np.asarray(nib.load(answer['out_file']).dataobj)
    np.testing.assert_allclose(result[head.mask], 3 * head.data[head.mask], rtol=0.02, atol=10)
    quantiles = np.array(answer['target_quantiles'])
    assert quantiles.shape == (101,)
    np.testing.assert_allclose(
        quantiles[5:96], 3 * np.percentile(head.data[head.mask], np.arange(101))[5:96], rtol=0.02
    )


def test_a_bundle_that_somebody_has_deleted_is_learnt_again(head_files, tmp_path, monkeypatch):
    """The working folder knows that it was learnt, and not that it is gone."""
    made = []
    monkeypatch.setattr(harmonize, 'run_isolated', lambda *_, **__: made.append(1) or {'digest': 'd'})
    for _ in range(2):
        interface = FitTarget(
            images=[head_files['brain']], masks=[head_files['mask']], tissues=[head_files['tissue']], contrasts=['T1w'], names=['sub-01_T1w'],
            sites=['A'], harmonizer='histogram', target='site:A', out_dir=str(tmp_path / 'model'), execution={'device': 'cpu', 'seed': 0},
        )  # fmt: skip
        pe.Node(interface, name='fit', base_dir=str(tmp_path / 'work')).run()
    assert len(made) == 2


def test_a_target_that_is_there_is_used_again(learnt, fit_inputs, head_files):
    """The first bundle stays, whatever a second job would have learnt; both report its digest."""
    before = {path.name: path.read_bytes() for path in learnt.folder.iterdir()}
    request = fit_request({**fit_inputs, 'out_dir': str(learnt.folder), 'images': [head_files['brain']] * 2})
    assert fit_files(request)['digest'] == learnt.record['digest']
    assert {path.name: path.read_bytes() for path in learnt.folder.iterdir()} == before


def test_another_target_has_another_digest(learnt, fit_inputs):
    assert fit_files(fit_request({**fit_inputs, 'target': 'site:A'}))['digest'] != learnt.record['digest']


def test_a_contrast_that_was_not_learnt_is_an_error_of_the_scan(learnt, request_for):
    with pytest.raises(ScanError) as caught:
        harmonize_files(
            request_for('histogram', model_dir=str(learnt.folder), target='site:B', contrast='FLAIR')
        )
    assert 'FLAIR' in str(caught.value)


def test_a_damaged_bundle_is_a_matter_of_configuration(learnt, request_for, tmp_path):
    broken = tmp_path / 'broken'
    broken.mkdir()
    for path in learnt.folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigurationError):
        harmonize_files(request_for('histogram', model_dir=str(broken), target='site:B'))


def test_what_a_method_needs_is_named(fit_inputs):
    one = {key: value[:1] if isinstance(value, list) else value for key, value in fit_inputs.items()}
    with pytest.raises(MissingNeed, match='several scans'):
        fit_files(fit_request({**one, 'harmonizer': 'nyul', 'target': 'canonical'}))


def test_an_unknown_method_is_refused(request_for):
    with pytest.raises(UsageError, match='no harmonizer'):
        harmonize_files(request_for('histogramm'))


# Methods of others


def test_values_outside_the_mask_never_leave_the_node(toys, request_for, head, head_files):
    answer = harmonize_files(request_for('toy', image=head_files['image']))
    result = np.asarray(nib.load(answer['out_file']).dataobj)
    np.testing.assert_allclose(result, np.where(head.mask, 2 * head.data, 0))
    assert answer['details'] == {'shown': 'native'}
    np.testing.assert_array_equal(nib.load(answer['uncertainty']).dataobj, np.where(head.mask, 0.5, 0))


@pytest.mark.parametrize('mood', ['nan', 'unsure how unsure'])
def test_numbers_that_are_none_are_an_error(mood, toys, request_for, monkeypatch):
    monkeypatch.setattr(Toy, 'mood', mood)
    request = request_for('toy')
    with pytest.raises(ScanError, match='toy gave values that are not numbers') as caught:
        harmonize_files(request)
    assert caught.value.where == 'sub-01_T1w'
    assert not Path(request['out_file']).exists()


def test_not_served_stays_not_served(toys, request_for, monkeypatch):
    monkeypatch.setattr(Toy, 'mood', 'refuses')
    with pytest.raises(NotServed, match='does not serve'):
        harmonize_files(request_for('toy'))


def test_a_method_of_the_model_grid_sees_one_and_its_change_comes_back(toys, request_for, head):
    """What it does at 1 mm is done to the native voxels, which are not resampled."""
    answer = harmonize_files(request_for('grid-toy'))
    seen = GridToy.seen
    assert all(size % 16 == 0 for size in seen['shape'])
    np.testing.assert_allclose(np.diag(seen['affine'])[:3], 1)
    assert seen['tissue'].shape == (3, *seen['shape'])
    assert seen['outside'] == 0
    assert (seen['name'], seen['site']) == ('sub-01_T1w', 'A')
    assert seen['mask'].sum() == pytest.approx(head.mask.sum() * 64, rel=0.03)
    assert answer['details']['carried_back_from_mm'] == 1.0
    result = np.asarray(nib.load(answer['out_file']).dataobj)
    assert result.shape == head.data.shape
    truth = 2 * head.data
    spread = float(np.std(truth[head.mask]))
    assert np.sqrt(np.mean((result - truth)[head.mask] ** 2)) < 0.01 * spread
    assert not result[~head.mask].any()
    uncertainty = np.asarray(nib.load(answer['uncertainty']).dataobj)
    assert uncertainty.shape == head.data.shape
    np.testing.assert_allclose(np.median(uncertainty[head.mask]), 0.5)


def test_without_tissue_there_is_none_on_the_grid_either(toys, head):
    scan = Scan(head.data, head.mask, head.affine, 'T1w')
    harmonize_scan(GridToy(), scan, Canonical())
    assert GridToy.seen['tissue'] is None


# The card


@pytest.fixture
def held(monkeypatch) -> list[str]:
    """Stand for the lock; what happened comes in order."""
    events: list[str] = []

    @contextlib.contextmanager
    def lock(device: str) -> Iterator[None]:
        events.append(f'take {device}')
        yield
        events.append(f'give {device}')

    monkeypatch.setattr(harmonize, 'device_lock', lock)
    return events


def told(events: list[str], word: str, function: Any) -> Any:
    def tell(*args: Any, **options: Any) -> Any:
        events.append(word)
        return function(*args, **options)

    return tell


def test_a_card_is_held_while_a_scan_is_harmonized(held, toys, request_for, monkeypatch):
    monkeypatch.setattr(harmonize, 'open_method', told(held, 'load', harmonize.open_method))
    monkeypatch.setattr(Toy, 'harmonize', told(held, 'harmonize', Toy.harmonize))
    harmonize_files(request_for('toy', execution={'device': 'cuda:1'}))
    assert held == ['take cuda:1', 'load', 'harmonize', 'give cuda:1']


def test_a_card_is_held_while_a_target_is_learnt(held, fit_inputs, monkeypatch):
    """Writing the bundle needs no card, so others need not wait for it."""
    method = registry.get('histogram')
    monkeypatch.setattr(method, 'fit', told(held, 'learn', method.fit))
    monkeypatch.setattr(harmonize.bundle, 'save', told(held, 'save', harmonize.bundle.save))
    fit_files(fit_request({**fit_inputs, 'execution': {'device': 'cuda:1'}}))
    assert held == ['take cuda:1', 'learn', 'give cuda:1', 'save']
