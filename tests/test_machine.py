"""Cores and memory as the container or the scheduler gives them."""

from __future__ import annotations

import os

import pytest

from bidsharm import machine


@pytest.fixture
def cgroup(monkeypatch, tmp_path):
    """A machine of 16 cores and 64 GB whose control groups say what the test writes."""
    monkeypatch.setattr(machine, 'CGROUP', tmp_path)
    monkeypatch.setattr(machine, 'OWN_GROUPS', tmp_path / 'own')
    for name in ('SLURM_MEM_PER_NODE', 'SLURM_MEM_PER_CPU', 'SLURM_CPUS_ON_NODE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    monkeypatch.setattr(os, 'sysconf', lambda name: {'SC_PAGE_SIZE': 4096, 'SC_PHYS_PAGES': 15_625_000}[name])

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)

    return write


def test_whole_machine(cgroup):
    assert machine.available_cores() == 16
    assert machine.available_memory_gb() == pytest.approx(0.9 * 64, abs=0.1)


def test_fewer_cores_by_affinity(cgroup, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 5}, raising=False)
    assert machine.available_cores() == 2


def test_system_without_affinity(cgroup, monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity')
    assert machine.available_cores() == 16


@pytest.mark.parametrize(
    ('files', 'cores'),
    [
        ({'cpu.max': '200000 100000\n'}, 2),
        ({'cpu.max': '250000 100000\n'}, 3),
        ({'cpu.max': '1000 100000\n'}, 1),
        ({'cpu.max': '9900000 100000\n'}, 16),
        ({'cpu.max': 'max 100000\n'}, 16),
        ({'cpu.max': ''}, 16),
        ({'cpu.max': '100000 0'}, 16),
        ({'cpu/cpu.cfs_quota_us': '400000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 4),
        ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 16),
    ],
)
def test_time_of_the_container(cgroup, files, cores):
    cgroup(**files)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ('files', 'gigabytes'),
    [
        ({'memory.max': '8000000000\n'}, 7.2),
        ({'memory.max': 'max\n'}, 57.6),
        ({'memory/memory.limit_in_bytes': '4000000000\n'}, 3.6),
        ({'memory/memory.limit_in_bytes': '9223372036854771712\n'}, 57.6),
    ],
)
def test_memory_of_the_container(cgroup, files, gigabytes):
    cgroup(**files)
    assert machine.available_memory_gb() == pytest.approx(gigabytes, abs=0.01)


def test_memory_that_nobody_tells(cgroup, monkeypatch):
    def refuse(name):
        raise ValueError(name)

    monkeypatch.setattr(os, 'sysconf', refuse)
    assert machine.available_memory_gb() == 7.2


def test_this_machine():
    assert 1 <= machine.available_cores() <= (os.cpu_count() or 1)
    assert 0 < machine.available_memory_gb() < 1e6


@pytest.mark.parametrize(
    ('own', 'files', 'cores', 'gigabytes'),
    [
        (
            '0::/slurm/job_7/step_0',
            {'slurm/job_7/memory.max': '6000000000', 'slurm/job_7/step_0/memory.max': 'max'},
            16,
            5.4,
        ),
        ('0::/slurm/job_7', {'slurm/job_7/cpu.max': '300000 100000', 'slurm/cpu.max': 'max 100000'}, 3, 57.6),
        (
            '5:cpu,cpuacct:/u\n9:memory:/slurm/job',
            {'memory/slurm/job/memory.limit_in_bytes': '4000000000'},
            16,
            3.6,
        ),
        ('5:cpuset:/j', {'memory/j/memory.limit_in_bytes': '4000000000'}, 16, 57.6),
        ('0::/../other', {'memory.max': '8000000000'}, 16, 7.2),
        ('0::/', {}, 16, 57.6),
    ],
)
def test_limits_of_the_job_lie_below_the_top(cgroup, own, files, cores, gigabytes):
    cgroup(own=own + '\n', **files)
    assert machine.available_cores() == cores
    assert machine.available_memory_gb() == pytest.approx(gigabytes, abs=0.1)


@pytest.mark.parametrize(
    ('asked', 'gigabytes'),
    [
        ({'SLURM_MEM_PER_NODE': '6144'}, 5.8),
        ({'SLURM_MEM_PER_CPU': '1024', 'SLURM_CPUS_ON_NODE': '4'}, 3.9),
        ({'SLURM_MEM_PER_NODE': '0'}, 57.6),
        ({'SLURM_MEM_PER_CPU': '1024'}, 57.6),
        ({'SLURM_MEM_PER_NODE': 'all'}, 57.6),
    ],
)
def test_what_a_job_has_asked_for_counts(cgroup, monkeypatch, asked, gigabytes):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert machine.available_memory_gb() == pytest.approx(gigabytes, abs=0.1)
