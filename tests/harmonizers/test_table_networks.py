"""The networks for tables: losses by hand, the flow's inverse, and what each is special for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bidsharm.errors import MissingNeed, UsageError
from bidsharm.harmonizers.causal_flow import CausalFlow
from bidsharm.harmonizers.combat import ComBat
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.gcvae import GcVAE, between_codes, goal_loss, to_normal
from bidsharm.harmonizers.table import FeatureTable
from bidsharm.harmonizers.table_networks import batches, mlp
from bidsharm.nn.table_flow import CausedFlow


def table(rows: int = 120, seed: int = 0) -> FeatureTable:
    rng = np.random.default_rng(seed)
    site = np.arange(rows) % 2
    age = rng.uniform(20, 80, rows)
    values = (
        5
        + 0.03 * age[:, None]
        + np.array([0, 2.0])[site][:, None]
        + rng.normal(0, 1, (rows, 4)) * np.array([1, 2.0])[site][:, None]
    )
    return FeatureTable(values, tuple('abcd'), tuple(np.array(['x', 'y'])[site]), covariates={'age': age})


def test_the_divergence_from_the_normal_distribution() -> None:
    mean, spread = (
        torch.tensor([[0.0, 1.0]], dtype=torch.double),
        torch.tensor([[1.0, 2.0]], dtype=torch.double),
    )
    ours = to_normal(mean, spread)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, spread), normal(0.0, 1.0)).sum()
    assert ours.item() == pytest.approx(theirs.item())


def test_the_divergence_between_codes() -> None:
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 3, generator=rng)
    spread = torch.rand(5, 3, generator=rng) + 0.5
    normal = torch.distributions.Normal
    pairs = [
        torch.distributions.kl_divergence(normal(mean[i], spread[i]), normal(mean[j], spread[j])).sum()
        for i in range(5)
        for j in range(5)
    ]
    assert between_codes(mean, spread).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert between_codes(mean[:1].expand(4, 3), spread[:1].expand(4, 3)).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_of_goals_is_the_mean_absolute_error() -> None:
    assert goal_loss(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)).item() == 1.5


@pytest.mark.parametrize('features', [1, 2, 5])
def test_the_flow_goes_there_and_back_and_knows_its_determinant(features: int) -> None:
    torch.manual_seed(1)
    flow = CausedFlow(features, 3, 2, couplings=4, width=8, bins=4).double()
    for weight in flow.parameters():
        torch.nn.init.normal_(weight, 0, 0.4)
    x, site, causes = (
        torch.randn(6, features).double(),
        torch.eye(3).repeat(2, 1).double(),
        torch.randn(6, 2).double(),
    )
    u, log_det = flow(x, site, causes)
    assert torch.allclose(flow.backwards(u, site, causes), x, atol=1e-8)
    for row in range(6):
        one = slice(row, row + 1)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, one=one: flow(v, site[one], causes[one])[0][0], x[one]
        )
        assert log_det[row].item() == pytest.approx(torch.linalg.slogdet(jacobian[:, 0])[1].item(), abs=1e-8)


def test_the_flow_starts_as_the_identity() -> None:
    flow = CausedFlow(4, 2, 1, couplings=2, width=8, bins=4)
    x = torch.randn(3, 4)
    u, log_det = flow(x, torch.eye(2)[[0, 1, 0]], torch.randn(3, 1))
    assert torch.allclose(u, x, atol=1e-6)
    assert torch.allclose(log_det, torch.zeros(3), atol=1e-6)


def test_without_couplings_the_counterfactual_is_combat_without_shrinking() -> None:
    one = table(400)
    plain = ComBat(settings=ComBat.preset(prior='none'))
    plain.fit(one, target=Site('x'), keep='age')
    flow = CausalFlow(settings=CausalFlow.preset(couplings=0, epochs=300, rate=2e-2, decay=0.0, batch=400))
    flow.fit(one, target=Site('x'), keep='age')
    ours, theirs = flow.harmonize(one).values, plain.harmonize(one).values
    assert np.abs(ours - theirs).max() < 0.15
    assert np.abs(ours - one.values).max() > 2


def test_a_counterfactual_at_the_own_site_is_the_fact() -> None:
    one = table()
    flow = CausalFlow(settings=CausalFlow.preset('tiny', epochs=5))
    flow.fit(one, target=Site('x'), keep='age')
    own = np.array([site == 'x' for site in one.sites])
    assert np.allclose(flow.harmonize(one).values[own], one.values[own], atol=1e-6)


def hasty(**changes: Any) -> GcVAE:
    return GcVAE(
        settings=GcVAE.preset('tiny', **{'epochs': 3, 'goal_epochs': 3, 'tune_epochs': 3, **changes})
    )


def test_the_tuning_leaves_the_goals_as_they_are_and_moves_the_decoder() -> None:
    weights = []
    for tune in (0, 3):
        method = hasty(tune_epochs=tune, tune_rate=1e-3)
        method.fit(table(), keep='age')
        weights.append({name: net.state_dict() for name, net in method.networks.items()})
    for name in ('goals', 'judge', 'encoder', 'decoder'):
        same = all(torch.equal(weights[0][name][key], value) for key, value in weights[1][name].items())
        assert same == (name in ('goals', 'judge')), name


@pytest.mark.parametrize('kind', ['gcvae', 'causal-flow'])
def test_the_reference_stays_and_what_lies_far_out_stays_far_out(kind: str) -> None:
    one = table()
    method = hasty() if kind == 'gcvae' else CausalFlow(settings=CausalFlow.preset('tiny', epochs=5))
    method.fit(one, target=Site('x'), keep='age')
    far = one.values.copy()
    far[:2, 0] += 40 * one.values[:, 0].std()  # a row of each site
    found = method.harmonize(replace(one, values=far)).values
    own = np.array([site == 'x' for site in one.sites])
    assert np.array_equal(found[own], far[own])
    assert found[1, 0] > one.values[:, 0].mean() + 30 * one.values[:, 0].std()


def test_the_code_does_not_see_the_site_label() -> None:
    one = table()
    method = hasty()
    method.fit(one, keep='age')
    swapped = FeatureTable(one.values, one.features, one.sites[1:] + one.sites[:1], covariates=one.covariates)
    assert np.array_equal(method.harmonize(swapped).values, method.harmonize(one).values)


def test_nothing_is_drawn_anew() -> None:
    one = table()
    method = hasty(epochs=20)
    method.fit(one, keep='age')
    assert np.array_equal(method.harmonize(one).values, method.harmonize(one).values)


def test_goals_are_needed() -> None:
    with pytest.raises(MissingNeed, match='what people differ by'):
        hasty().fit(table())


@pytest.mark.parametrize(
    ('kind', 'settings'), [(GcVAE, {'width': 0}), (CausalFlow, {'couplings': -1}), (CausalFlow, {'bins': 0})]
)
def test_wrong_settings_are_refused(kind: Any, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match='or more'):
        kind.preset(**settings)


def test_batches_take_every_row_once_and_leave_none_alone() -> None:
    parts = list(batches(9, 4))
    assert sorted(torch.cat(parts).tolist()) == list(range(9))
    assert [len(part) for part in parts] == [4, 5]


def test_layers_end_with_a_linear_one() -> None:
    kinds = [type(layer).__name__ for layer in mlp([3, 4, 5, 2], dropout=0.1)]
    assert kinds == ['Linear', 'Tanh', 'Dropout', 'Linear', 'Tanh', 'Dropout', 'Linear']
