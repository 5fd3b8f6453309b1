"""Acquisition parameters as a target: what is planned, what is refused, and on what the bundle depends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bidsharm.workflows.participant import plan_run
from bidsharm.workflows.targets import ensure_target, known_target, target_folder

from bidsharm.bids.acquisition import acquisition_of, read_acquisition
from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.sidecars import preproc_spec
from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.acquisition import AcquisitionModels, learn_model

SEQUENCE = {
    'RepetitionTime': 2.3, 'EchoTime': 0.003, 'InversionTime': 0.9, 'FlipAngle': 9, 'MagneticFieldStrength': 3,
}  # fmt: skip


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """A bundle of hail with weights that nobody trained, which knows eight protocols of T1w and two of T2w."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    method = registry.get('hail')(settings=registry.get('hail').preset('tiny'))
    method.sites, method.contrasts, method.target_site = ('A', 'B'), ('T1w', 'T2w'), 'A'
    method.networks = torch.nn.ModuleDict(method.build())
    method.take_trained(units={'T1w': 1.0, 'T2w': 1.0}, kind='site', label='A')
    protocols = [(2.0 + 0.1 * n, 0.003, 0.9, 9.0, 3.0) for n in range(8)]
    styles = [
        {name: np.full((1, 16), 1 + 0.1 * n, np.float32) for name in ('mean', 'deviation')} for n in range(8)
    ]
    known = learn_model(protocols, styles, ('mean', 'deviation'), 5.0)
    method._acquisitions = AcquisitionModels({'T1w': 8, 'T2w': 2}, {'T1w': known})
    folder = tmp_path_factory.mktemp('model') / 'hail'
    bundle.save(method, folder)
    return folder


@pytest.fixture
def wished(tmp_path) -> Path:
    file = tmp_path / 'wished' / 'sub-01_T1w.json'
    file.parent.mkdir()
    file.write_text(json.dumps(SEQUENCE))
    return file


@pytest.fixture
def settle(make_data_set, make_settings, tmp_path, model, wished):
    """Return a function that gives settings for a trained method and a sidecar."""
    make_data_set(tmp_path / 'bids', {'01': 'A', '02': 'B'}, ('T1w', 'T2w'))

    def settle(**values):
        usual = {'harmonizer': 'hail', 'model': model, 'target': f'acquisition:{wished}'}
        chosen = {**usual, **values}
        return make_settings(**{name: value for name, value in chosen.items() if value is not None})

    return settle


def test_the_plan_aims_without_scans(settle):
    settings = settle()
    plan = plan_run(settings)
    assert plan.method.target == 'acquisition:sub-01_T1w.json'
    assert plan.method.target_label == 'acquisition sub-01_T1w.json'
    assert plan.fit_scans == ()
    assert plan.acquisition.parameters == SEQUENCE
    # The parameters are those of a T1w.
    assert {scan.suffix for scan in plan.selection.scans} == {'T1w'}
    assert 'offers no T2w' in plan.selection.left_out[0].what


def test_the_target_is_learnt_once_and_known_then(settle, tmp_path, model):
    settings = settle()
    plan = plan_run(settings)
    assert known_target(plan, settings) == plan
    found = ensure_target(plan, settings, tmp_path, tmp_path)
    assert Path(found.method.model_dir) == target_folder(plan, settings)
    assert found.method.model_digest != bundle.digest(model)
    assert known_target(plan_run(settings), settings).method == found.method
    _, learnt = bundle.load(Path(found.method.model_dir)).state()
    assert (learnt['target_kind'], learnt['target']) == ('acquisition', 'acquisition:sub-01_T1w.json')
    assert (learnt['units'], learnt['acquisition_target']) == ({'T1w': 5.0}, SEQUENCE)
    # The bundle is a model whose target it is.
    other = plan_run(settle(model=Path(found.method.model_dir), target='canonical'))
    assert (other.method.target, other.acquisition) == ('acquisition:sub-01_T1w.json', None)
    assert {scan.suffix for scan in other.selection.scans} == {'T1w'}


def test_results_depend_on_what_the_sidecar_says(settle, tmp_path, wished):
    settings = settle()

    def digest() -> str:
        plan = ensure_target(plan_run(settings), settings, tmp_path, tmp_path)
        return settings.digest(model=plan.method.learnt)

    before = digest()
    wished.write_text(json.dumps({**SEQUENCE, 'SeriesDescription': 'another day'}))
    assert digest() == before
    wished.write_text(json.dumps({**SEQUENCE, 'RepetitionTime': 2.2}))
    assert digest() != before


def test_what_cannot_be_aimed_at_is_refused_before_anything_is_done(settle, wished):
    with pytest.raises(ConfigurationError, match='hail needs a model bundle'):
        plan_run(settle(model=None))
    for name in ('tscore', 'munit', 'unet3d'):
        with pytest.raises(UsageError, match=f'{name} cannot aim at an acquisition target'):
            plan_run(settle(harmonizer=name, model=None))
    with pytest.raises(UsageError, match='unet3d cannot aim at an acquisition target'):
        plan_run(settle(harmonizer='unet3d'))
    t2w = wished.rename(wished.with_name('sub-01_T2w.json'))
    with pytest.raises(UsageError, match='trained on 2 protocols of T2w'):
        plan_run(settle(target=f'acquisition:{t2w}'))


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        (
            'T1w.json',
            '{"EchoTime": 0.003}',
            'T1w.json lacks RepetitionTime, FlipAngle, MagneticFieldStrength',
        ),
        ('T1w.json', json.dumps({**SEQUENCE, 'EchoTime': 0}), 'T1w.json lacks EchoTime'),
        ('T1w.json', '[]', 'no JSON object'),
        ('T1w.json', '{', 'cannot be read'),
        ('gone_T1w.json', None, 'No such file'),
        ('protocol.json', '{}', 'not the name of a sidecar'),
        ('sub-01_T1w.txt', '{}', 'not the name of a sidecar'),
    ],
)
def test_sidecars_that_cannot_be_used_are_refused(name, text, message, settle, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        plan_run(settle(target=f'acquisition:{tmp_path / name}'))


# From the raw sidecar to the training.


def test_only_numbers_that_can_be_are_acquisition_parameters():
    metadata = {
        'RepetitionTime': 2, 'EchoTime': '0.003', 'InversionTime': True, 'FlipAngle': [9.0],
        'MagneticFieldStrength': 2.89362, 'Manufacturer': 'x',
    }  # fmt: skip
    assert acquisition_of(metadata) == {'RepetitionTime': 2.0, 'MagneticFieldStrength': 2.89362}
    assert acquisition_of({'EchoTime': 0.0, 'FlipAngle': -9, 'RepetitionTime': float('inf')}) == {}


def test_a_sidecar_may_begin_with_a_byte_order_mark(wished):
    wished.write_bytes(b'\xef\xbb\xbf' + wished.read_bytes())
    found = read_acquisition(wished)
    assert (found.name, found.contrast, found.label) == (
        'sub-01_T1w.json', 'T1w', 'acquisition:sub-01_T1w.json',
    )  # fmt: skip
    assert found.parameters == SEQUENCE


def test_the_preprocessed_image_keeps_the_parameters_of_the_scan(settle, tmp_path):
    """By the inheritance principle, as all other fields."""
    (tmp_path / 'bids' / 'T1w.json').write_text(json.dumps({**SEQUENCE, 'FlipAngle': 8, 'Manufacturer': 'x'}))
    (tmp_path / 'bids' / 'sub-02' / 'anat' / 'sub-02_T1w.json').write_text('{"FlipAngle": 12}')
    scans = {scan.subject: scan for scan in plan_run(settle()).selection.scans if scan.suffix == 'T1w'}
    for subject, flip in {'01': 8, '02': 12}.items():
        sidecar = preproc_spec(scans[subject], Precomputed(), None)['sidecar']
        assert acquisition_of(sidecar) == {**SEQUENCE, 'FlipAngle': flip}
        assert 'Manufacturer' not in sidecar
