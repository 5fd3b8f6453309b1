"""The picture of the simulator: every error is seen in it, alone, and it is small enough for a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def picture(benchmark_script: Any) -> Any:
    return benchmark_script('simulator_picture')


def test_every_error_is_alone_and_is_seen(picture: Any) -> None:
    x, y, z = np.ogrid[-1:1:32j, -1:1:32j, -1:1:32j]
    ball = torch.from_numpy((x**2 + y**2 + z**2 < 0.5).astype(np.float32))
    first, *others = picture.errors((4.0, 4.0, 4.0)).values()
    assert torch.equal(first(ball), ball)
    seen = [change(ball) for change in others]
    assert all((image - ball).abs().max() > 0.1 for image in seen)
    assert len({float((image - ball).abs().sum()) for image in seen}) == len(others)


def test_rows_are_drawn_as_one_small_picture(
    picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, 'PICTURE', tmp_path / 'drawn.webp')
    tile, edges = np.zeros((20, 30), np.float32), (-80.0, 80.0, -100.0, 80.0)
    picture.draw([{'a': (tile, edges), 'b': (np.zeros((20, 30, 3)), edges)}, {'c': (tile, edges)}])
    assert (tmp_path / 'drawn.webp').stat().st_size > 0


def test_the_page_shows_a_picture_of_less_than_200_kb(picture: Any) -> None:
    root = Path(__file__).parents[1]
    assert f'](images/{picture.PICTURE.name})' in (root / 'docs' / 'simulator.md').read_text(encoding='utf-8')
    assert (root / 'docs' / 'images' / picture.PICTURE.name).stat().st_size < 200_000
