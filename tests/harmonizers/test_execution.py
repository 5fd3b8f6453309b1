from __future__ import annotations

import os
import stat
import sys
import tempfile
import threading

import pytest

from bidsharm.errors import ConfigurationError, ScanError, UsageError
from bidsharm.harmonizers import execution as module
from bidsharm.harmonizers.contract import Execution
from bidsharm.harmonizers.execution import (
    TileSettings,
    device_lock,
    memory_ladder,
    resolve_device,
    with_memory_ladder,
)


@pytest.fixture
def cards(monkeypatch):
    """Return a function that pretends a number of CUDA devices."""
    torch = pytest.importorskip('torch')

    def pretend(count):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)

    return pretend


def test_devices_with_two_cards(cards, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5')
    cards(2)
    assert resolve_device('auto') == 'cuda:0'
    assert resolve_device('cuda') == 'cuda:0'
    assert resolve_device('cuda:1') == 'cuda:1'
    assert resolve_device('cpu') == 'cpu'
    with pytest.raises(ConfigurationError, match='finds 2 CUDA devices'):
        resolve_device('cuda:2')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '4,5'


def test_devices_without_a_card(cards):
    cards(0)
    assert resolve_device('auto') == 'cpu'
    for name in ('cuda', 'cuda:0'):
        with pytest.raises(ConfigurationError, match='finds no CUDA devices'):
            resolve_device(name)


def test_mps_has_to_be_there(cards, monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(ConfigurationError, match='Apple'):
        resolve_device('mps')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert resolve_device('mps') == 'mps'


def test_devices_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert resolve_device('auto') == 'cpu'
    assert resolve_device('cpu') == 'cpu'
    with pytest.raises(ConfigurationError, match='not installed'):
        resolve_device('cuda')


@pytest.mark.parametrize('name', ['gpu', 'cuda:', 'cuda:x', 'cuda:-1', 'CUDA', ''])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UsageError, match=r'cuda:N'):
        resolve_device(name)


def test_the_cpu_needs_no_lock(tmp_path):
    with device_lock('cpu', tmp_path / 'locks'), device_lock('cpu', tmp_path / 'locks'):
        assert not (tmp_path / 'locks').exists()


def test_one_card_is_held_by_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_uuid', lambda number: f'card {number}')
    inside, order = threading.Event(), []

    def second():
        inside.wait(10)
        with device_lock('cuda:0', tmp_path):
            order.append('second')

    thread = threading.Thread(target=second)
    thread.start()
    with device_lock('cuda:0', tmp_path):
        inside.set()
        with device_lock('cuda:1', tmp_path):  # another card does not wait
            order.append('other card')
        thread.join(0.3)
        order.append('first ends')
    thread.join(10)
    assert order == ['other card', 'first ends', 'second']


def test_the_lock_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), device_lock('cuda:0', tmp_path):
            raise ZeroDivisionError


def test_locks_go_by_the_physical_card(monkeypatch):
    monkeypatch.setattr(module, '_uuid', lambda number: '')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    of_third = module._physical_name('cuda:1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    assert module._physical_name('cuda:0') == of_third
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert module._physical_name('cuda:3') == of_third
    assert module._physical_name('cuda:0') != of_third
    assert '/' not in module._physical_name('cuda:0')


def test_locks_go_by_the_uuid_where_one_is_listed(monkeypatch):
    """PyTorch tells the UUID without the prefix that CUDA_VISIBLE_DEVICES has: both must name one file."""
    monkeypatch.setattr(module, '_uuid', lambda number: '')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2, GPU-5d1a-77')
    listed = module._physical_name('cuda:1')
    assert listed == 'bidsharm-gpu-5d1a-77'
    assert module._physical_name('cuda') == module._physical_name('cuda:0') == 'bidsharm-gpu-2'
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(module, '_uuid', lambda number: '5d1a-77')
    assert module._physical_name('cuda:0') == listed


def test_jobs_with_a_temporary_folder_of_their_own_share_the_lock(tmp_path, monkeypatch):
    shared = tmp_path / 'shared'
    shared.mkdir()
    monkeypatch.setattr(module, 'SHARED_FOLDERS', (tmp_path / 'gone', shared))
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    for job in ('one', 'two'):
        monkeypatch.setenv('TMPDIR', str(tmp_path / job))
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / job))
        with device_lock('cuda:0'):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ['shared']
    assert [path.name for path in shared.iterdir()] == ['bidsharm-gpu-card.lock']


def test_without_a_shared_folder_the_temporary_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'SHARED_FOLDERS', (tmp_path / 'gone',))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    assert module.lock_folder() == tmp_path


@pytest.mark.skipif(os.name != 'posix', reason='modes are those of POSIX')
def test_everyone_may_write_to_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    before = os.umask(0o077)
    try:
        with device_lock('cuda:0', tmp_path):
            pass
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o666


def test_a_lock_that_cannot_be_opened_is_replaced_by_one_of_the_user(tmp_path, monkeypatch, caplog):
    """A folder in its place stands for somebody else's file: it cannot be opened, not even by root."""
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    (tmp_path / 'bidsharm-gpu-card.lock').mkdir()
    waiting, order = threading.Event(), []

    def second():
        waiting.wait(10)
        with device_lock('cuda:0', tmp_path):
            order.append('second')

    thread = threading.Thread(target=second)
    thread.start()
    with device_lock('cuda:0', tmp_path):
        waiting.set()
        thread.join(0.3)
        order.append('first ends')
    thread.join(10)
    assert order == ['first ends', 'second']
    assert len(list(tmp_path.glob('bidsharm-gpu-card-user-*.lock'))) == 1
    assert 'cannot be used' in caplog.text


def test_work_goes_on_where_nothing_can_be_locked(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    (tmp_path / 'file').touch()
    with device_lock('cuda:0', tmp_path / 'file'):
        assert 'not waited for' in caplog.text
    with pytest.raises(PermissionError, match='of the step'), device_lock('cuda:0', tmp_path):
        raise PermissionError('of the step')  # an error of the step is not one of the lock


def test_the_ladder_only_goes_down():
    start = TileSettings(batch=4, tile=None, stitch_device='cuda:0', device='cuda:0')
    ladder = memory_ladder(start, tiles=(64, 128))
    assert [(rung.batch, rung.tile) for rung in ladder[:5]] == [
        (4, None),
        (2, None),
        (1, None),
        (1, (128, 128, 128)),
        (1, (64, 64, 64)),
    ]
    assert [(rung.stitch_device, rung.device) for rung in ladder[4:]] == [
        ('cuda:0', 'cuda:0'),
        ('cpu', 'cuda:0'),
        ('cpu', 'cpu'),
    ]
    assert memory_ladder(TileSettings(tile=(64, 64, 32)), tiles=(128, 64)) == (
        TileSettings(tile=(64, 64, 32)),
    )


class Hungry:
    """Runs out of memory until the settings are small enough."""

    def __init__(self, fits, error, words='CUDA out of memory'):
        self.fits, self.error, self.words, self.tried = fits, error, words, []

    def __call__(self, tile):
        self.tried.append(tile)
        if not self.fits(tile):
            raise self.error(self.words)
        return f'done on {tile.device}'


@pytest.fixture
def out_of_memory():
    return pytest.importorskip('torch').cuda.OutOfMemoryError


START = TileSettings(batch=2, tile=(128, 128, 128), stitch_device='cuda:0', device='cuda:0')


class FullCard:
    """A view whose card is full."""

    sees_all = False

    def __init__(self, error):
        self.error, self.devices = error, []

    def through(self, volumes, translate, *, background, batch, device):
        self.devices.append(device)
        if device != 'cpu':
            raise self.error('CUDA out of memory')
        return volumes[0]


class Sent(dict):
    """Networks that note where they are sent."""

    where = ''

    def to(self, device):
        self.where = device
        return self


@pytest.mark.parametrize('allowed', [True, False])
def test_networks_of_a_trained_method_go_to_the_processor_where_allowed(allowed, out_of_memory, monkeypatch):
    import numpy as np
    import torch

    from bidsharm.harmonizers.network_settings import Given
    from bidsharm.harmonizers.unet import UNet3D

    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)
    execution = Execution(device='cuda:0', oom_fallback='cpu' if allowed else 'fail')
    method, view, volume = UNet3D(execution), FullCard(out_of_memory), np.ones((4, 4, 4), np.float32)
    method.networks = Sent()
    monkeypatch.setattr(method, 'view', lambda: view)
    if not allowed:
        with pytest.raises(ScanError, match='memory of cuda:0 does not suffice'):
            method._through(volume, Given())
        assert set(view.devices) == {'cuda:0'}
        return
    assert np.array_equal(method._through(volume, Given()), volume)
    assert view.devices[-1] == method.networks.where == 'cpu'
    assert 'cpu' in execution.steps[-1]


def test_no_step_is_taken_without_need(out_of_memory):
    execution = Execution(device='cuda:0')
    run = Hungry(lambda tile: True, out_of_memory)
    assert with_memory_ladder(run, execution=execution, ladder=memory_ladder(START)) == 'done on cuda:0'
    assert run.tried == [START]
    assert execution.steps == []


def test_steps_are_taken_in_order_and_recorded(out_of_memory):
    execution = Execution(device='cuda:0')
    run = Hungry(lambda tile: tile.stitch_device == 'cpu', out_of_memory)
    ladder = memory_ladder(START, tiles=(64,))
    assert with_memory_ladder(run, execution=execution, ladder=ladder) == 'done on cuda:0'
    assert run.tried == list(ladder[:4])
    assert len(execution.steps) == 3
    assert 'batch 2' in execution.steps[0]
    assert execution.steps[-1].endswith('cuda:0, batch 1, tile 64x64x64, stitched on cpu')


def test_the_cpu_takes_over_only_when_allowed(out_of_memory):
    ladder = memory_ladder(START)
    run = Hungry(lambda tile: tile.device == 'cpu', out_of_memory)
    allowed = Execution(device='cuda:0', oom_fallback='cpu')
    assert with_memory_ladder(run, execution=allowed, ladder=ladder) == 'done on cpu'
    assert len(allowed.steps) == len(ladder) - 1

    run = Hungry(lambda tile: tile.device == 'cpu', out_of_memory)
    refused = Execution(device='cuda:0')
    with pytest.raises(ScanError, match='--oom-fallback cpu') as caught:
        with_memory_ladder(run, execution=refused, ladder=ladder)
    assert all(tile.device == 'cuda:0' for tile in run.tried)
    assert 'cuda:0' in caught.value.what
    assert len(refused.steps) == len(ladder) - 1
    assert refused.steps[-1].endswith('nothing smaller is left')


@pytest.mark.parametrize('error', [RuntimeError, MemoryError, ValueError])
def test_other_errors_are_not_swallowed(error):
    execution = Execution(device='cuda:0', oom_fallback='cpu')
    run = Hungry(lambda tile: False, error, 'the method stumbled')
    with pytest.raises(error, match='stumbled'):
        with_memory_ladder(run, execution=execution, ladder=memory_ladder(START))
    assert len(run.tried) == 1
    assert execution.steps == []


@pytest.mark.parametrize(
    'words',
    [
        'CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported',
        'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
        'cuDNN error: CUDNN_STATUS_ALLOC_FAILED',
        'MPS backend out of memory (MPS allocated: 9 GB)',
    ],
)
def test_libraries_below_say_in_words_that_memory_ran_out(words, monkeypatch):
    run = Hungry(lambda tile: tile.device == 'cpu', RuntimeError, words)
    execution = Execution(device='cuda:0', oom_fallback='cpu')
    assert with_memory_ladder(run, execution=execution, ladder=memory_ladder(START)) == 'done on cpu'
    assert execution.steps


@pytest.mark.parametrize(
    'words',
    [
        'CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported',
        'No CUDA GPUs are available',
        'CUDA error: no CUDA-capable device is detected',
        'CUDA error: unspecified launch failure',
        'CUDA driver initialization failed, you might not have a CUDA gpu.',
        'cuDNN error: CUDNN_STATUS_EXECUTION_FAILED',
    ],
)
@pytest.mark.parametrize('kind', ['RuntimeError', 'AcceleratorError'])
def test_a_card_that_is_lost_is_named_and_not_taken_for_one_that_is_full(words, kind):
    error = RuntimeError if kind == 'RuntimeError' else type(kind, (RuntimeError,), {})
    run = Hungry(lambda tile: False, error, words)
    execution = Execution(device='cuda:0', oom_fallback='cpu')
    with pytest.raises(ScanError, match='--device cpu') as caught:
        with_memory_ladder(run, execution=execution, ladder=memory_ladder(START))
    assert caught.value.what == f'The device cuda:0 failed: {words.splitlines()[0].rstrip(".")}.'
    assert len(run.tried) == 1
    assert execution.steps == []


def test_nobody_waits_for_a_card_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_uuid', lambda number: 'card')
    monkeypatch.setattr(module, 'LOCK_WAIT_S', 0.1)
    with (
        device_lock('cuda:0', tmp_path),
        pytest.raises(ScanError, match='Other jobs have held this card'),
        device_lock('cuda:0', tmp_path),
    ):
        pass


def test_without_torch_the_name_of_the_error_decides(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)

    class OutOfMemoryError(RuntimeError):
        pass

    run = Hungry(lambda tile: tile.batch == 1, OutOfMemoryError)
    assert with_memory_ladder(run, execution=Execution(device='cuda:0'), ladder=memory_ladder(START))
    assert len(run.tried) == 2
