"""The U-Net that draws the canonical image: blocks and channels, and units."""

from __future__ import annotations

import numpy as np
import torch

from bidsharm.nn.isotone_unet import (
    BLOCK,
    CanonicalUNet,
    blocks_to_channels,
    channels_to_blocks,
    draw,
    volume_of,
)


def test_blocks_become_channels_and_voxels_again() -> None:
    image = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    deep = blocks_to_channels(image)
    assert deep.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(deep[:, :8, 0, 0, 0], image[:, 0, :2, :2, :2].reshape(2, 8))
    torch.testing.assert_close(channels_to_blocks(deep), image)


def test_a_volume_is_cut_to_the_brain_and_has_its_units() -> None:
    voxels = torch.from_numpy(np.argwhere(np.ones((9, 10, 11)))) + 40
    values = torch.arange(len(voxels), dtype=torch.float32)
    image, where = volume_of(values, voxels)
    assert image.shape == (1, 2, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK)
    assert image[0, 1].sum() == len(voxels)
    torch.testing.assert_close(
        torch.quantile(image[(0, 0, *where)], 0.9), torch.tensor(1.0), atol=1e-3, rtol=0
    )


def test_scale_offset_and_place_do_not_matter() -> None:
    torch.manual_seed(0)
    net = CanonicalUNet().eval()
    voxels = torch.from_numpy(np.argwhere(np.ones((12, 14, 16))))
    values = torch.rand(len(voxels))
    with torch.inference_mode():
        first, second = draw(net, values, voxels), draw(net, 700 * values + 90, voxels + 24)
    assert first.std() > 0.05
    torch.testing.assert_close(second, first, atol=0.03, rtol=0)
