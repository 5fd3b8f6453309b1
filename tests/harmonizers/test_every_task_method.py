"""What every task method promises: it learns in seconds, survives its bundle, and says clearly what it cannot do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bidsharm.errors import ConfigurationError, MissingNeed, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.task import Task, TrainedTask
from bidsharm.training.volumes import TrainingSet

from .task_brains import brain, cohort

METHODS = [name for name in registry._BUILTIN if registry.card(name).place == 'task']
TASKS = {
    'regression': Task('regression', 'age'),
    'classification': Task('classification', 'group', ('old', 'young')),
    'segmentation': Task('segmentation', 'dseg', ('CSF', 'GM', 'WM'), (3, 1, 2)),
}
PAIRS = [(name, kind) for name in METHODS for kind in registry.find(name).kinds]  # type: ignore[attr-defined]


def method_of(name: str, kind: str, **changes: Any) -> TrainedTask:
    found = registry.find(name)
    assert issubclass(found, TrainedTask)
    if kind == 'segmentation':
        changes = {'edge': 16, **changes}
    return found(settings=found.preset('tiny', kind, **changes))  # type: ignore[arg-type]


def asked(kind: str, data: TrainingSet, ages: dict[str, float], groups: dict[str, str]) -> dict[str, Any]:
    """Return answers; of a segmentation those of site A only."""
    if kind == 'segmentation':
        return {one.name: 'yes' for one in data.volumes if one.site == 'A'}
    return ages if kind == 'regression' else groups


def test_the_methods_of_the_survey_are_there():
    assert {'erm', 'unlearning', 'ad2a', 'learn-to-ignore', 'uda-latent', 'uda-image', 'unit-seg'} == set(
        METHODS
    )


@pytest.mark.parametrize('name', METHODS)
def test_cards(name):
    card = registry.card(name)
    assert (card.domain, card.output, card.place) == ('volume', 'task', 'task')
    assert card.paper
    assert card.targets == ()
    assert 'weights' in card.needs_apply
    assert card.deviations or card.fidelity == 'faithful'
    with pytest.raises(UsageError, match='bidsharm-task') as caught:
        registry.get(name)
    assert 'gives none' in caught.value.what


@pytest.mark.parametrize(('name', 'kind'), PAIRS)
def test_it_learns_its_task_and_survives_its_bundle(name, kind, tmp_path):
    data, ages, groups = cohort(16)
    method = method_of(name, kind)
    method.fit(data, asked(kind, data, ages, groups), task=TASKS[kind], seed=0)
    new = [brain(100 + i, 'AB'[i % 2], age=age, seed=5) for i, age in enumerate((25, 25, 40, 62, 75, 75))]
    said = [method.predict(one) for one in new]
    assert all(np.isfinite(one.embedding).all() and one.embedding.ndim == 1 for one in said)
    if kind == 'regression':
        found = [one.value for one in said]
        assert np.corrcoef(found, (25, 25, 40, 62, 75, 75))[0, 1] > 0.7
        assert 10 < min(found) < max(found) < 95
    elif kind == 'classification':
        shares = np.array([one.shares for one in said])
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
        assert shares[[4, 5], 0].mean() > shares[[0, 1], 0].mean() + 0.3
    else:
        for one, prediction in zip(new, said, strict=True):
            assert prediction.labels is not None
            assert not prediction.labels[~one.mask].any()
            assert one.tissue is not None
            # Site B has no labels; the plain network sees its contrast for the first time.
            if one.site == 'A':
                assert np.mean(prediction.labels[one.mask] == one.tissue[one.mask]) > 0.75
    bundle.save(method, tmp_path / 'model')
    again = bundle.load_any(tmp_path / 'model')
    assert isinstance(again, TrainedTask)
    assert (again.task, again.sites, again.labelled_sites) == (
        method.task,
        method.sites,
        method.labelled_sites,
    )
    np.testing.assert_allclose(again.predict(new[0]).embedding, said[0].embedding, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigurationError, match='gives none'):
        bundle.load(tmp_path / 'model')


@pytest.mark.parametrize('name', METHODS)
def test_what_is_missing_is_said(name):
    data, ages, groups = cohort(6)
    kind = registry.find(name).kinds[0]  # type: ignore[attr-defined]
    answers = asked(kind, data, ages, groups)
    with pytest.raises(MissingNeed, match='not trained'):
        method_of(name, kind).predict(data.volumes[0])
    with pytest.raises(MissingNeed, match=f'{name} needs'):
        method_of(name, kind).fit(data, dict.fromkeys(answers), task=TASKS[kind])
    if name != 'erm':
        alone = TrainingSet(data.at('A'))
        with pytest.raises(MissingNeed, match=f'{name} needs'):
            method_of(name, kind).fit(alone, answers, task=TASKS[kind])
    for other in set(TASKS) - set(registry.find(name).kinds):  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match=f'cannot be trained for a {other}'):
            method_of(name, kind).fit(data, answers, task=TASKS[other])
    with pytest.raises(UsageError, match='no setting "nonsense"'):
        method_of(name, kind, nonsense=1)


@pytest.mark.parametrize('name', ['uda-image', 'unit-seg'])
def test_sites_without_labels_are_asked_for(name):
    data, _, _ = cohort(6)
    everyone = {one.name: 'yes' for one in data.volumes}
    with pytest.raises(MissingNeed, match='--labelled'):
        method_of(name, 'segmentation').fit(data, everyone, task=TASKS['segmentation'])


def test_one_class_is_nothing_to_tell_apart():
    data, _, groups = cohort(6)
    with pytest.raises(UsageError, match='nothing to tell apart'):
        method_of('erm', 'classification').fit(data, groups, task=Task('classification', 'group', ('old',)))


def test_answers_may_be_missing():
    data, ages, _ = cohort(16)
    some = {name: age if index % 2 else None for index, (name, age) in enumerate(ages.items())}
    method = method_of('unlearning', 'regression')
    method.fit(data, some, task=TASKS['regression'])
    assert method.labelled_sites == ('B',)
    known = [age for age in some.values() if age is not None]
    assert method.unit == pytest.approx((np.mean(known), np.std(known)))


def test_confusion_moves_the_encoder_until_the_classifier_is_undecided():
    import torch

    from bidsharm.nn.losses import confusion

    data, ages, _ = cohort(12)
    method = method_of('unlearning', 'regression', steps=200, first=1.0, average=0.0)
    method.fit(data, ages, task=TASKS['regression'])
    batch = method.sampler(data, ages).draw(np.random.default_rng(0))
    method.networks.train()
    optimizer = torch.optim.Adam(method.networks['encoder'].parameters(), 1e-3)
    before = float(confusion(method.networks['domain'](method.read(batch['x'])[1])).detach())
    assert before > 1.0  # the classifier knows the sites after a stage that hides nothing
    kept = {name: value.clone() for name, value in method.networks['domain'].state_dict().items()}
    for _ in range(60):
        (name, losses), *_ = [turn for turn in method.losses(batch, 'unlearn') if turn[0] == 'confusion']
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert float(losses['confusion'].detach()) / 10 < np.log(2) + 0.1
    assert name == 'confusion'
    for key, value in method.networks['domain'].state_dict().items():
        assert torch.equal(value, kept[key])


def test_unlearning_keeps_the_age():
    data, ages, _ = cohort(24)
    method = method_of('unlearning', 'regression')
    method.fit(data, ages, task=TASKS['regression'])
    new = [brain(200 + i, 'AB'[i % 2], age=age) for i, age in enumerate(np.linspace(22, 78, 12))]
    error = np.abs([method.predict(one).value - one.covariates['age'] for one in new]).mean()
    # Saying the mean age of all would be wrong by 15 years.
    assert error < 12


def test_learn_to_ignore_pulls_scans_of_one_class_together():
    import torch

    method = method_of('learn-to-ignore', 'classification')
    method.task = TASKS['classification']
    code = torch.zeros(4, 16)
    code[1, 0], code[2, 1], code[3, 1] = 3, 10, 10
    truth, site = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    pull, push = method.pairs(code, truth, site)  # type: ignore[attr-defined]
    assert float(pull) == pytest.approx(9 / 2)  # the pairs of class 0 are 3 apart, those of class 1 together
    assert float(push) == 0  # classes are farther apart than the margin of 5
    _, near = method.pairs(code / 10, truth, site)  # type: ignore[attr-defined]
    apart = np.array([1.0, np.hypot(0.3, 1)])
    assert float(near) == pytest.approx(float(np.mean((5 - apart) ** 2)), rel=1e-3)
    centres = method.centres(code)  # type: ignore[attr-defined]
    assert float((centres[0] - centres[1]).norm()) == pytest.approx(5 * np.sqrt(2))


def test_attention_that_is_alike_costs_nothing():
    import torch

    from bidsharm.harmonizers.ad2a import AttentionAdaptation

    site = torch.tensor([0, 1, 0, 1])
    where = torch.rand(1, 1, 2, 2, 2).expand(4, -1, -1, -1, -1).clone()
    assert float(AttentionAdaptation.apart(where, site)) == pytest.approx(0, abs=1e-7)
    where[site == 1] += 0.5
    assert float(AttentionAdaptation.apart(where, site)) == pytest.approx(0.25, rel=1e-4)


def test_scans_of_labelled_sites_are_translated_first():
    data, _, _ = cohort(8)
    method = method_of('unit-seg', 'segmentation', steps=3)
    method.fit(data, {one.name: 'yes' for one in data.at('A')}, task=TASKS['segmentation'])
    import torch

    image = torch.from_numpy(data.at('A')[0].values)[None, None]
    assert not torch.equal(method.before(image, 'A'), image)
    assert torch.equal(method.before(image, 'B'), image)
