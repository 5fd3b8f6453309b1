"""MISPEL: losses of its two stages, and encoders that stand still in the second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsharm.errors import ScanError
from bidsharm.harmonizers.contract import Canonical, Cohort, Scan
from bidsharm.harmonizers.mispel import Mispel
from bidsharm.training.options import Stage


class FirstStage(Mispel):
    @property
    def stages(self) -> Sequence[Stage]:
        return super().stages[:1]


@pytest.fixture
def method() -> Mispel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Mispel(settings=Mispel.preset('tiny', voxel_mm=1.0, widths=(4, 8), batch=2, hold_out=0.0))
    made.sites = ('A', 'B', 'C')
    made.networks = torch.nn.ModuleDict(made.build())
    return made


def test_losses_are_those_of_the_paper(method: Mispel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each site's maps are its image times 1, 2, 3; its decoder takes the first of the six.
    monkeypatch.setattr(Mispel, '_maps', lambda self, x, site: (site + 1) * x.repeat(1, 6, 1, 1))
    for decoder in method.networks['decoders']:  # type: ignore[attr-defined]
        with torch.no_grad():
            decoder[0].weight.zero_()
            decoder[0].weight[:, 0] = 1
            decoder[0].bias.zero_()
    batch = {'images': torch.ones(2, 3, 4, 4), 'mask': torch.ones(2, 1, 4, 4)}
    ((player, first),) = method.losses(batch, 'embedding')
    assert player == 'embedding'
    assert float(first['restored'].detach()) == pytest.approx(0.3 * (0 + 1 + 2) / 3)
    assert float(first['alike'].detach()) == pytest.approx(2 / 3)
    ((player, second),) = method.losses(batch, 'harmonizing')
    assert player == 'decoding'
    assert float(second['restored'].detach()) == pytest.approx(1.0)
    assert float(second['harmonized'].detach()) == pytest.approx(4 * (1 + 2 + 1) / 3)


def test_there_is_a_network_of_each_kind_for_each_site(method: Mispel) -> None:
    assert len(method.networks['encoders']) == len(method.networks['decoders']) == 3  # type: ignore[arg-type]
    decoder = method.networks['decoders'][0]  # type: ignore[index]
    assert sum(weight.numel() for weight in decoder.parameters()) == 6 + 1
    assert method.players['decoding'].networks == ('decoders',)


def test_the_second_stage_leaves_the_encoders(make_scan: Callable[..., Scan]) -> None:
    torch.set_num_threads(1)
    scans = [
        replace(make_scan(seed=n, shape=(16, 16, 16), site=site, gain=1 + (site == 'B')), person=str(n))
        for n in range(2) for site in 'AB'
    ]  # fmt: skip
    # Half of the steps, all of them in the first stage.
    whole, half = (
        kind(settings=Mispel.preset('tiny', voxel_mm=1.0, widths=(4, 8), batch=2, hold_out=0.0, steps=steps))
        for kind, steps in ((Mispel, 8), (FirstStage, 4))
    )
    whole.fit(Cohort(scans), target=Canonical())
    half.fit(Cohort(scans), target=Canonical())
    for name, weight in half.networks['encoders'].state_dict().items():
        assert torch.equal(weight, whole.networks['encoders'].state_dict()[name])
    assert not torch.equal(half.networks['decoders'][0][0].weight, whole.networks['decoders'][0][0].weight)  # type: ignore[index]
    one, other = (whole.harmonize(scan, Canonical()) for scan in scans[:2])
    assert not np.array_equal(one.image, other.image)
    with pytest.raises(ScanError, match='"D"'):
        whole.harmonize(replace(scans[0], site='D'), Canonical())
