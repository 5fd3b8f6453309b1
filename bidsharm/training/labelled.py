"""Batches for networks that answer a question: scans whose answer is known, and scans of other sites, where it may not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bidsharm.training.regimes import Batch, Example, Sampler
from bidsharm.training.views import View
from bidsharm.training.volumes import TrainingSet, TrainingVolume

#: What is asked of a scan: a number, the number of a class, or None where nobody knows it.
Answers = Mapping[str, float | int | None]


class Labelled(Sampler):
    """Scans (``x``, ``mask``, ``site``) with what is asked of them (``truth``), and whether it is known (``known``).

    Every other example of a batch is one whose answer is known. Sites take turns whatever their sizes, since a domain classifier that sees
    more of one site learns to name it.

    Parameters
    ----------
    data, view, batch, flip
        As for every sampler.
    answers
        By name of the scan. None where the labels of voxels are asked for: then ``truth`` is a volume.
    labelled
        Names of the scans whose answer may be learnt from.
    sites
        All sites of the training, whose places are their numbers; the data may lack some.
    """

    def __init__(
        self,
        data: TrainingSet,
        view: View,
        *,
        batch: int,
        answers: Answers | None,
        labelled: Sequence[str],
        sites: Sequence[str],
        flip: bool = True,
    ) -> None:
        super().__init__(data, view, batch=batch, flip=flip)
        self.sites = sites
        self.answers, self.labelled = answers, frozenset(labelled)
        numbers = answers is not None and any(isinstance(answer, float) for answer in answers.values())
        self.dtype = np.float32 if numbers else np.int64
        self.known = _by_site([volume for volume in data.volumes if volume.name in self.labelled])
        self.everyone = _by_site(data.volumes)

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch, every other example of which has an answer."""
        one = self.narrowed(rng)
        pools = [self.everyone if index % 2 and self.everyone else self.known for index in range(self.batch)]
        examples = [one.changed(rng).labelled_example(self.one_of(pool, rng), rng) for pool in pools]
        return {name: torch.from_numpy(np.stack([one[name] for one in examples])) for name in examples[0]}

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in any scan."""
        return self.labelled_example(self.one_of(self.everyone, rng), rng)

    def site(self, volume: TrainingVolume) -> NDArray:
        """Return the number of a volume's site among all sites of the training."""
        return np.asarray(self.sites.index(volume.site), dtype=np.int64)

    def one_of(self, pool: Mapping[str, list[TrainingVolume]], rng: np.random.Generator) -> TrainingVolume:
        """Return a scan of a site drawn at random."""
        return self.pick(pool[str(rng.choice(sorted(pool)))], rng)

    def labelled_example(self, volume: TrainingVolume, rng: np.random.Generator) -> Example:
        """Cut a place of a scan."""
        place, flipped = self.view.choose(volume.mask, rng), self.mirrored(rng)
        known = volume.name in self.labelled
        truth: NDArray
        if self.answers is None:
            truth = self.labels(volume, place, flipped)
        else:
            answer = self.answers.get(volume.name)
            known = known and answer is not None
            truth = np.asarray(answer if known else 0, self.dtype)
        return {
            'x': self.image(volume, place, flipped), 'mask': self.mask(volume, place, flipped), 'site': self.site(volume),
            'truth': truth, 'known': np.asarray(known, np.float32),
        }  # fmt: skip


class SourceAndTarget(Sampler):
    """A scan with labels of voxels (``x``, ``x_truth``) and one of a site without (``y``), at the same place of the head.

    Parameters
    ----------
    data, view, batch, flip
        As for every sampler.
    labelled
        Names of the scans with labels; scans of their sites are never a ``y``.
    """

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, labelled: Sequence[str], flip: bool = True
    ) -> None:
        super().__init__(data, view, batch=batch, flip=flip)
        self.source = [volume for volume in data.volumes if volume.name in set(labelled)]
        sites = {volume.site for volume in self.source}
        self.others = [volume for volume in data.volumes if volume.site not in sites]

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in two scans."""
        x = self.pick(self.source, rng)
        y = self.pick(self.like(x, self.others), rng)
        place = self.view.choose(x.mask, rng)
        flips = self.mirrored(rng), self.mirrored(rng)
        return {
            'x': self.image(x, place, flips[0]), 'x_mask': self.mask(x, place, flips[0]), 'x_truth': self.labels(x, place, flips[0]),
            'y': self.image(y, place, flips[1], reference=True), 'y_mask': self.mask(y, place, flips[1]),
        }  # fmt: skip


def _by_site(volumes: Sequence[TrainingVolume]) -> dict[str, list[TrainingVolume]]:
    found: dict[str, list[TrainingVolume]] = {}
    for volume in volumes:
        found.setdefault(volume.site, []).append(volume)
    return found
