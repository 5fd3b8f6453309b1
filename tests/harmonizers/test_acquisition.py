"""Looks of protocols from acquisition parameters: the regression, what it says of itself, and methods that aim with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.harmonizers import acquisition, bundle, registry
from bidsharm.harmonizers.acquisition import (
    AcquisitionModels,
    features,
    learn_model,
    left_out_r2,
    protocol_of,
)
from bidsharm.harmonizers.contract import Acquisition, Cohort, Site
from bidsharm.harmonizers.native import on_model_grid
from bidsharm.harmonizers.stargan2 import StyleTransfer
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.training.options import Budget, Running

from .conftest import build

MPRAGE = {
    'RepetitionTime': 2.3, 'EchoTime': 0.003, 'InversionTime': 0.9, 'FlipAngle': 9.0, 'MagneticFieldStrength': 3.0,
}  # fmt: skip
WEIGHTS = np.array(
    [[0.5, -0.3, 0.05, 0.8, 0.4, 0.2, -0.4, -0.03, 0.1], [-0.2, 0.6, 0.02, -0.5, 0.1, -0.7, 0.3, 0.0, -0.2]]
)


def drawn(count: int, seed: int = 0) -> list[tuple[float, ...]]:
    """Return protocols, every third without inversion."""
    rng = np.random.default_rng(seed)
    low, high = (0.5, 0.002, 0.6, 5, 1.5), (3, 0.02, 1.2, 30, 7)
    rows = [list(rng.uniform(low, high)) for _ in range(count)]
    for row in rows[::3]:
        row[2] = 0.0
    return [tuple(row) for row in rows]


def planted(protocols: list[tuple[float, ...]]) -> np.ndarray:
    """Return numbers that are linear in the features; of a protocol without inversion its time says nothing."""
    return np.nan_to_num(features(protocols), nan=-0.1) @ WEIGHTS.T + [1.0, -2.0]


def as_parameters(protocol: tuple[float, ...]) -> dict[str, float]:
    return {name: value for name, value in zip(acquisition.PARAMETERS, protocol, strict=True) if value}


def model_of(protocols, numbers, **more):
    styles = [
        {'mean': row[None].astype(np.float32), 'rest': np.full(3, index, np.float32)}
        for index, row in enumerate(numbers)
    ]
    return learn_model(protocols, styles, ('mean',), **{'unit': 7.0, **more})


# The regression.


def test_a_planted_linear_relation_is_found():
    protocols, others = drawn(40), drawn(10, seed=1)
    model = model_of(protocols, planted(protocols))
    wanted = planted(others)
    for other, numbers in zip(others, wanted, strict=True):
        style = model.style(as_parameters(other))
        assert style['mean'].shape == (1, 2)
        assert style['mean'].dtype == np.float32
        assert np.abs(style['mean'][0] - numbers).max() < 0.1 * planted(protocols).std()
    assert model.r2 > 0.99
    assert model.protocols == 40


def test_what_is_not_to_be_predicted_stays_at_its_mean():
    protocols = drawn(9)
    model = model_of(protocols, planted(protocols))
    assert np.allclose(model.style(MPRAGE)['rest'], 4.0)


def solved(x, y, penalty):
    """Return the ridge regression of standardized features by its normal equations, as a function."""
    z = np.column_stack([x, np.ones(len(x))])
    weights = np.linalg.solve(z.T @ z + penalty * np.diag([1.0] * x.shape[1] + [0.0]), z.T @ y)
    return lambda row: np.append(row, 1) @ weights


def test_r2_is_that_of_protocols_that_were_left_out():
    protocols = [row for row in drawn(10) if row[2]]
    x, y = features(protocols), planted(protocols)
    y = y + 0.3 * np.random.default_rng(5).standard_normal(y.shape)
    error = spread = 0.0
    for left in range(len(x)):
        rest = [index for index in range(len(x)) if index != left]
        mean, scale = x[rest].mean(axis=0), x[rest].std(axis=0)
        scale[scale < 1e-6] = 1
        z = (x - mean) / scale

        def missed(penalty, z=z, rest=rest):
            return sum(
                ((solved(z[kept], y[kept], penalty)(z[one]) - y[one]) ** 2).sum()
                for one in rest
                for kept in [[index for index in rest if index != one]]
            )

        best = min(np.logspace(-2, 2, 9), key=missed)
        error += ((solved(z[rest], y[rest], best)(z[left]) - y[left]) ** 2).sum()
        spread += ((y[rest].mean(axis=0) - y[left]) ** 2).sum()
    assert left_out_r2(x, y) == pytest.approx(1 - error / spread, abs=1e-6)
    assert left_out_r2(x, y) < 0.99


def test_contrasts_of_signal_equations_can_be_told():
    """How bright grey matter and fluid are, relative to white matter, in scanners of all kinds from 64 mT to 7 T."""
    from bidsharm.training.scans import draw_signals

    found = {}
    for contrast, count in (('T2w', 12), ('T2w', 60), ('T1w', 8), ('T1w', 60)):
        drawn = draw_signals(contrast, count, seed=3)
        tissues = drawn.signal[:, :, drawn.signal.shape[2] // 2].abs().numpy().astype(float)[:, [0, 2]]
        protocols = [protocol_of(drawn.acquisition(number)) for number in range(count)]
        found[contrast, count] = left_out_r2(features(protocols), tissues / tissues.std(axis=0))
    assert min(found['T2w', 12], found['T2w', 60], found['T1w', 60]) > 0.4
    assert max(found.values()) < 0.95
    # Sequences with and without inversion, at any field: eight of them are too few, and the number says so.
    assert found['T1w', 8] < 0.3


def test_r2_of_parameters_that_tell_nothing_is_0():
    same = [protocol_of(MPRAGE)] * 7
    numbers = np.arange(7.0)[:, None]
    assert left_out_r2(features(same), numbers) == pytest.approx(0, abs=1e-9)
    assert left_out_r2(features(drawn(7)), np.ones((7, 2))) == 0


def test_a_protocol_is_what_three_digits_tell():
    assert protocol_of(MPRAGE) == (2.3, 0.003, 0.9, 9.0, 3.0)
    assert protocol_of({**MPRAGE, 'EchoTime': 0.0030004}) == protocol_of(MPRAGE)
    assert protocol_of({**MPRAGE, 'EchoTime': 0.0031}) != protocol_of(MPRAGE)
    plain = {name: value for name, value in MPRAGE.items() if name != 'InversionTime'}
    assert protocol_of(plain) == (2.3, 0.003, 0.0, 9.0, 3.0)
    for name in plain:
        assert protocol_of({key: value for key, value in MPRAGE.items() if key != name}) is None


# What it says of itself.


def test_doubts():
    protocols = [(2.0 + 0.1 * n, 0.003, 0.9, 8.0 + n, 3.0) for n in range(7)]
    model = model_of(protocols, planted(protocols))
    inside = {**MPRAGE, 'FlipAngle': 10.0}
    assert model.doubts(inside) == ()
    # 8 to 14 degrees; 20 % beyond is still as it should be.
    assert model.doubts({**inside, 'FlipAngle': 16.7}) == ()
    assert model.doubts({**inside, 'FlipAngle': 6.5}) == ()
    (doubt,) = model.doubts({**inside, 'FlipAngle': 17.0})
    assert (
        doubt
        == 'The FlipAngle of the target, 17 degrees, lies beyond those of the training, 8 to 14 degrees.'
    )
    (doubt,) = model.doubts({**inside, 'MagneticFieldStrength': 1.5})
    assert '1.5 T' in doubt
    plain = {name: value for name, value in inside.items() if name != 'InversionTime'}
    (doubt,) = model.doubts(plain)
    assert 'no InversionTime, and every protocol' in doubt
    uninverted = model_of([(*row[:2], 0.0, *row[3:]) for row in protocols], planted(protocols))
    (doubt,) = uninverted.doubts(inside)
    assert 'an InversionTime, and no protocol' in doubt
    assert 'R² 0.31 over 7 protocols' in replace(model, r2=0.3123).doubts(inside)[0]
    assert replace(model, r2=0.5).doubts(inside) == ()


def test_refusals_say_what_is_missing():
    protocols = drawn(6)
    known = AcquisitionModels({'T1w': 6, 'T2w': 5}, {'T1w': model_of(protocols, planted(protocols))})
    assert known.model(Acquisition('a.json', 'T1w', MPRAGE), 'hail').protocols == 6
    with pytest.raises(UsageError, match=r'trained on 5 protocols of T2w .* and 6 are needed'):
        known.model(Acquisition('a.json', 'T2w', MPRAGE), 'hail')
    with pytest.raises(UsageError, match='trained on 0 protocols of FLAIR'):
        known.model(Acquisition('a.json', 'FLAIR', MPRAGE), 'hail')
    with pytest.raises(UsageError, match=r'a\.json lacks EchoTime, MagneticFieldStrength\.'):
        known.model(Acquisition('a.json', 'T1w', {'RepetitionTime': 2.0, 'FlipAngle': 9.0}), 'hail')


# Methods.


def test_methods_that_can_aim_at_acquisition_parameters_say_so():
    for name in registry._BUILTIN:
        kind = registry.find(name)
        can = issubclass(kind, TrainedHarmonizer) and bool(kind.look)
        assert ('acquisition' in kind.card.targets) is can, name
        assert not can or kind.aims_anew()


ECHOES = (0.002, 0.0025, 0.003, 0.0036, 0.0043, 0.0052, 0.0063)


def curve(echo: float) -> float:
    """Return the exponent of the curve by which scans of an echo time are seen."""
    return 1 + 0.8 * float(np.log(echo / ECHOES[0]))


def scans_of(people: int = 2):
    """Return people at seven sites with an echo time each; the first person has no sidecar at the second site."""
    scans = []
    for person in range(people):
        seen = build(seed=person, shape=(36, 40, 36))
        for number, echo in enumerate(ECHOES):
            data = 900 * (np.clip(seen.data, 0, None) / 900) ** curve(echo)
            known = {} if (person, number) == (0, 1) else {**MPRAGE, 'EchoTime': echo}
            scans.append(
                replace(
                    seen, data=data.astype(np.float32), site=f'site{number}', person=f'{person}', session=f'{number}',
                    affine=np.diag([4.0, 4, 4, 1]), name=f'sub-{person}_ses-{number}_T1w', acquisition=known,
                )
            )  # fmt: skip
    return scans


@pytest.fixture(scope='module')
def trained():
    """StyleTransfer, trained on scans of seven echo times."""
    import torch

    torch.set_num_threads(1)
    method = StyleTransfer(settings=StyleTransfer.preset('tiny', hold_out=0.0))
    method.fit(Cohort(scans_of()), target=Site('site0'), running=Running(budget=Budget(40)))
    return method


@pytest.fixture
def model(trained, tmp_path):
    """The same from a bundle, so that a test may aim elsewhere."""
    bundle.save(trained, tmp_path / 'model')
    return bundle.load(tmp_path / 'model')


def test_the_look_of_a_protocol_is_that_of_its_site(model):
    scans = scans_of()
    scan = on_model_grid(scans[3], model.grid_mm)

    def image(target):
        found = model.harmonize(scan, target)
        return found.image[scan.mask] / found.details['target_unit']

    looks = {}
    for number in (1, 5):
        site = Site(f'site{number}')
        model.fit(Cohort([other for other in scans if other.site == site.name]), target=site)
        looks[number] = image(site)
    apart = np.abs(looks[1] - looks[5]).mean()
    assert apart > 0.005
    for number in (1, 5):
        wished = Acquisition('x_T1w.json', 'T1w', {**MPRAGE, 'EchoTime': ECHOES[number]})
        report = model.fit(Cohort(()), target=wished)
        assert report.scans == ()
        assert np.abs(image(wished) - looks[number]).mean() < 0.1 * apart


def test_the_record_tells_where_the_look_comes_from(model):
    scan = on_model_grid(scans_of()[3], model.grid_mm)
    wished = Acquisition('x_T1w.json', 'T1w', {**MPRAGE, 'EchoTime': 0.02})
    model.fit(Cohort(()), target=wished)
    found = model.harmonize(scan, wished)
    told = found.details['acquisition']
    assert told['EchoTime'] == 0.02
    assert told['protocols'] == 7
    assert -1 <= told['r2'] <= 1
    assert any('EchoTime of the target, 0.02 s, lies beyond' in sentence for sentence in found.warnings)
    # The unit is the median of all sites.
    units = [float(np.percentile(scan.data[scan.mask], 99)) for scan in scans_of()]
    assert found.details['target_unit'] == pytest.approx(np.median(units), rel=0.05)
    assert model.target_quantiles('T1w') is None


def test_an_acquisition_survives_its_bundle_and_another_target_forgets_it(model, tmp_path):
    scans = scans_of()
    scan = on_model_grid(scans[3], model.grid_mm)
    wished = Acquisition('x_T1w.json', 'T1w', {**MPRAGE, 'EchoTime': 0.004})
    model.fit(Cohort(()), target=wished)
    first = model.harmonize(scan, wished)
    bundle.save(model, tmp_path / 'aimed')
    again = bundle.load(tmp_path / 'aimed')
    # The name is enough once a model aims there.
    second = again.harmonize(scan, Acquisition('x_T1w.json'))
    assert np.array_equal(first.image, second.image)
    assert (first.details, first.warnings) == (second.details, second.warnings)
    again.fit(Cohort(scans[:1]), target=Site('site0'))
    assert 'acquisition' not in again.harmonize(scan, Site('site0')).details
    # What was learnt of acquisition parameters is still there.
    again.fit(Cohort(()), target=wished)
    assert np.array_equal(again.harmonize(scan, wished).image, first.image)


def test_scans_without_parameters_make_no_regression():
    scans = [replace(scan, acquisition={}) for scan in scans_of(1)[:2]]
    method = StyleTransfer(settings=StyleTransfer.preset('tiny', hold_out=0.0))
    method.fit(Cohort(scans), target=Site('site0'), running=Running(budget=Budget(1)))
    with pytest.raises(UsageError, match='trained on 0 protocols of T1w'):
        method.fit(Cohort(()), target=Acquisition('x_T1w.json', 'T1w', MPRAGE))
    # It still aims where it did.
    assert method.harmonize(on_model_grid(scans[1], method.grid_mm), Site('site0')).image.any()


def test_nothing_is_trained_for_an_acquisition():
    method = StyleTransfer(settings=StyleTransfer.preset('tiny'))
    with pytest.raises(UsageError, match='A training cannot aim at acquisition parameters'):
        method.fit(Cohort(scans_of(1)), target=Acquisition('x_T1w.json', 'T1w', MPRAGE))
