"""The parts of the scaling benchmark whose answers are known beforehand."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'scaling_{name}', BENCHMARKS / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


queueing, traffic = load('queueing'), load('traffic')


@pytest.mark.parametrize(
    ('cost', 'scans', 'cores', 'gpus', 'seconds'),
    [
        ((10, 0, 5), 1, 1, 1, 15),
        ((10, 0, 5), 4, 1, 1, 60),
        ((10, 0, 5), 4, 4, 1, 15),
        ((10, 0, 5), 4, 2, 1, 30),
        ((10, 2, 5), 1, 8, 8, 17),
        ((1, 10, 1), 5, 100, 1, 52),  # the GPU is what everybody waits for
        ((1, 10, 1), 5, 100, 5, 12),
    ],
)
def test_time_of_a_queue(cost, scans, cores, gpus, seconds):
    found = queueing.simulate([queueing.Cost(*cost)] * scans, cores, gpus)
    assert found.hours * 3600 == pytest.approx(seconds)
    assert found.cores_busy == pytest.approx(scans * (cost[0] + cost[2]) / (cores * seconds))
    assert found.gpus_busy == pytest.approx(scans * cost[1] / (gpus * seconds))


def test_wide_scans_wait_until_they_fit():
    found = queueing.simulate([queueing.Cost(10, 0, 0, cores=2)] * 3, cores=3, gpus=1)
    assert found.hours * 3600 == pytest.approx(30)


@pytest.mark.parametrize(
    ('line', 'area', 'counted'),
    [
        ('openat(AT_FDCWD</w>, "/data/sub-01/a.nii", O_RDONLY) = 3</data/sub-01/a.nii>', 'data', {'metadata': 1, 'opened': 1}),
        ('openat(AT_FDCWD</w>, "/data/gone", O_RDONLY) = -1 ENOENT (No such file)', 'data', {'metadata': 1}),
        ('openat(AT_FDCWD</data>, "b.json", O_RDONLY|O_CLOEXEC) = 4</data/b.json>', 'data', {'metadata': 1, 'opened': 1}),
        ('read(3</out/x.nii>, ""..., 4096) = 4000', 'out', {'read': 4000}),
        ('write(3</out/x.nii>, ""..., 4096) = -1 EAGAIN', 'out', {}),
        ('rename("/out/.x.part", "/out/x") = 0', 'out', {'metadata': 1}),
        ('getdents64(3</data>, 0x55 /* 12 entries */, 32768) = 400', 'data', {'metadata': 1}),
        ('stat("/etc/hosts", {st_mode=S_IFREG|0644}) = 0', None, {}),
        ('read(3<pipe:[12]>, ""..., 10) = 10', None, {}),
        ('+++ exited with 0 +++', None, {}),
        ('openat(AT_FDCWD</w>, "/outside/x", O_RDONLY) = 3</outside/x>', None, {}),
    ],
)  # fmt: skip
def test_call_is_counted_where_it_belongs(line, area, counted):
    counts = {'data': Counter(), 'out': Counter()}
    traffic._count(line, {'data': [Path('/data')], 'out': [Path('/out')]}, counts)
    expected = {name: Counter(counted if name == area else {}) for name in counts}
    assert {name: +count for name, count in counts.items()} == {
        name: +count for name, count in expected.items()
    }
