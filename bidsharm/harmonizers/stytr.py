"""A transformer for the content and one for the style (Han et al. 2023, after StyTr2, Deng et al. 2022, arXiv:2105.14576)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.style import StyleMethod, StyleSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class StyTrSettings(StyleSettings):
    """Settings of the style transformer.

    Parameters
    ----------
    channels, patch, depth, heads
        Length of a token, edge of a patch, layers and heads.
    features, code
        Channels of the autoencoder whose encoder compares images.
    extractor
        Part of the training that this autoencoder takes.
    content, style, same_image, same_features
        Weights of the losses.
    references
        Slices of the target whose tokens are its style.
    """

    channels: int = 512
    patch: int = 8
    depth: int = 3
    heads: int = 8
    features: tuple[int, ...] = (32, 64, 128)
    code: int = 64
    extractor: float = 0.2
    content: float = 1.0
    style: float = 70.0
    same_image: float = 50.0
    same_features: float = 1.0
    references: int = 4
    batch: int = 8
    steps: int = 100_000
    rate: float = 5e-4


class StyTr(StyleMethod):
    """Style transfer by transformers (Han et al. 2023)."""

    settings: StyTrSettings
    Preset: ClassVar[type[NetworkSettings]] = StyTrSettings
    look: ClassVar[tuple[str, ...]] = ()  # its codes are those of single slices
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'channels': 32, 'patch': 2, 'depth': 1, 'heads': 2, 'features': (8, 16), 'code': 8, 'batch': 4, 'steps': 600,
        'rate': 1e-3, 'extractor': 0.2, 'references': 2,
    }  # fmt: skip
    card = Card(
        name='stytr', title='Transformers that look from content to style', family='transformer', supervision='unpaired',
        paper='Han D, et al. MR image harmonization with transformer. IEEE ICMA 2023:2448-2453.', geometry='grid',
        targets=('site', 'reference'), needs_fit=('cohort',), needs_apply=('weights',), changes_anatomy=True, uses_device=True,
        memory_gb=6.0, fidelity='minimal',
        deviations='The paper could not be read: network and weights follow StyTr2, and its decoder layers first attend to the content itself, '
        'then to the style. Images are compared by the encoder of an autoencoder that is trained on the same scans and then frozen, instead '
        'of a network trained on photographs; its features are smaller, so style weighs ten times as much as in StyTr2, and content a tenth. '
        'The style of a target are the tokens of a few of its slices, and in training those of another slice than the one that is compared.',
    )  # fmt: skip

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans with references from anywhere, and slices elsewhere in both."""
        from bidsharm.training.regimes import OtherPlaces

        return OtherPlaces(data, self.view(), batch=self.settings.batch, flip=self.settings.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the transformer, and the autoencoder that compares images."""
        from bidsharm.nn.latent import Autoencoder
        from bidsharm.nn.stytr import StyleTransformer

        s = self.settings
        return {
            'transformer': StyleTransformer(s.channels, s.patch, s.depth, s.heads),
            'features': Autoencoder(2, s.features, s.code),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """The transformer, and before it the autoencoder."""
        from bidsharm.training.options import Player

        return {
            'transformer': Player(('transformer',), self.settings.rate, clip=1.0),
            'features': Player(('features',), self.settings.rate),
        }

    @property
    def stages(self) -> Sequence[Stage]:
        """Features, then transfer."""
        from bidsharm.training.options import Stage

        return Stage('features', self.settings.extractor), Stage('transfer', 1 - self.settings.extractor)

    def begin(self, stage: str) -> None:
        """Freeze the autoencoder for the transfer."""
        from bidsharm.nn.losses import frozen

        if stage == 'transfer':
            frozen(self.networks['features'])

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Rebuilding in the first stage; content, style and two identities in the second."""
        from bidsharm.nn.losses import l1

        if stage == 'features':
            found = self.networks['features'](batch['x'])
            yield 'features', {'image': l1(self.inside(found, batch['x_mask']), batch['x'])}
            return
        yield 'transformer', self.transferred(batch)

    def transferred(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of StyTr2 (eq. 9 to 12): content, style, and two of images that get their own style."""
        from bidsharm.nn.losses import l2, moment_distance
        from bidsharm.nn.stytr import normalized

        s, net, x, y = self.settings, self.networks['transformer'], batch['x'], batch['y']

        def features(image: Tensor) -> list[Tensor]:
            return self.networks['features'].features(image)  # type: ignore[operator]

        def summed(parts: Iterator[Tensor]) -> Tensor:
            return sum(parts, start=x.new_zeros(()))

        # Styles come from other slices than those that are compared, as they will when a scan is harmonized: they must not tell the place.
        styles = {name: net.style_tokens(batch[f'{name}_other']) for name in 'xy'}  # type: ignore[operator]
        found = features(self.inside(net(x, styles['y']), batch['x_mask']))
        of_x, of_y = features(x), features(y)
        same = {name: self.inside(net(batch[name], styles[name]), batch[f'{name}_mask']) for name in 'xy'}
        pairs = [*zip(features(same['x']), of_x, strict=True), *zip(features(same['y']), of_y, strict=True)]
        return {
            # Contents are compared at the two coarsest levels.
            'content': s.content * summed(l2(normalized(a), normalized(b)) for a, b in zip(found[-2:], of_x[-2:], strict=True)),
            'style': s.style * summed(moment_distance(a, b) for a, b in zip(found, of_y, strict=True)),
            'same_image': s.same_image * (l2(same['x'], x) + l2(same['y'], y)),
            'same_features': s.same_features * summed(l2(a, b) for a, b in pairs),
        }  # fmt: skip

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the tokens of the style."""
        del site
        return self.networks['transformer'].style_tokens(x)  # type: ignore[operator]

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return the tokens of slices that lie at equal distances in the stack of all, shape (1, tokens, channels)."""
        import numpy as np
        import torch

        found = list(self.slices(scans, masks))
        rows = [(number, row) for number, batch in enumerate(found) for row in range(len(batch))]
        count = min(self.settings.references, len(rows))
        chosen = [rows[int(at)] for at in (np.arange(count) + 0.5) * len(rows) / count]
        tokens = [self.encode_style(found[number][row, None], None)[0] for number, row in chosen]
        return {'tokens': torch.cat(tokens)[None]}

    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Put slices through the transformer."""
        del given
        return self.networks['transformer'](x, style)

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Give a batch the style of the target."""
        assert given.style is not None
        return self.render(x, given.style['tokens'].expand(len(x), -1, -1), given)
