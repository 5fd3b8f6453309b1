"""The table of trained methods: places and means are those that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def zoo(benchmark_script: Any) -> Any:
    return benchmark_script('zoo')


def test_means_by_person_leave_the_target_scanner_out(zoo: Any) -> None:
    rows = [
        {'method': 'robust', 'person': 'a', 'scanner': 'near', 'psnr': 20.0},
        {'method': 'robust', 'person': 'a', 'scanner': 'far', 'psnr': 10.0},
        {'method': 'robust', 'person': 'a', 'scanner': 'aim', 'psnr': 99.0},
        {'method': 'robust', 'person': 'b', 'scanner': 'far'},
    ]
    assert zoo.by_person({'scans': rows}, 'psnr', 'aim') == {'robust': {'a': 15.0}}


def test_the_best_in_everything_has_rank_1_and_ties_share_a_place(zoo: Any) -> None:
    first = {'x': {'a': 3.0, 'b': 3.0}, 'y': {'a': 2.0, 'b': 2.0}, 'z': {'a': 2.0, 'b': 1.0}}
    second = {'x': {'a': 0.9, 'b': 0.9}, 'y': {'a': 0.1, 'b': 0.2}, 'z': {'a': 0.2, 'b': 0.1}}
    # y: 2.5 and 2, then 3 and 2; z: 2.5 and 3, then 2 and 3
    assert zoo.ranks([first, second], ['x', 'y', 'z']) == {'x': 1.0, 'y': 2.375, 'z': 2.625}


def test_a_row_shows_intervals_in_brackets(zoo: Any) -> None:
    row = {
        'method': 'nyul',
        'PSNR': [23.456, 22.0, 25.04],
        'detail': [0.5, None, None],
        'p': 1e-5,
        'age r': None,
    }
    assert zoo.shown(row) == {
        'method': 'nyul', 'PSNR': '23.5 (22, 25)', 'detail': '0.5', 'p': '<0.001', 'age r': None,
    }  # fmt: skip


def test_the_peak_is_that_since_it_was_forgotten(zoo: Any) -> None:
    block = np.ones(60_000_000)  # 0.48 GB
    with_block = zoo.peak()
    del block
    zoo.forget_peak()
    assert zoo.peak() < with_block - 0.3
