"""Nipype's scheduler of this machine, on processes each of which may be lost alone.

Nipype keeps one pool. When the kernel kills one of its processes because memory has run out, or a library crashes, the pool is
broken and Nipype waits for ever for what was handed to it. Here every worker is a pool of its own: the step that a lost one was at
fails, with the reason, and all others go on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from time import monotonic, sleep
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bidsharm.errors import ScanError
from bidsharm.interfaces.isolated import end_of
from bidsharm.processes import Identity, begin_worker, end_processes, this_process

#: How long to wait for the exit code of a process that is known to have ended (seconds).
_EXIT_CODE_S = 2.0


def _begin(folder: str, parent: Identity) -> None:
    begin_worker(parent)
    process_initializer(folder)


@dataclass
class _Worker:
    """A process, and what it was last given to do."""

    executor: ProcessPoolExecutor
    process: BaseProcess
    task: Future[Any]


class Workers(Executor):
    """Processes that take one task each at a time; a lost one is replaced.

    Parameters
    ----------
    folder
        Where they stand.
    context
        How they are started.
    """

    def __init__(self, folder: str, context: BaseContext) -> None:
        self.folder, self.context = folder, context
        self.workers: list[_Worker] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Hand a task to an idle process, or to a new one."""
        return self.start(function, *args, **options).task

    def start(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> _Worker:
        """Hand a task to an idle process, or to a new one, and return who has it."""
        for worker in [worker for worker in self.workers if worker.task.done()]:
            try:
                worker.task = worker.executor.submit(function, *args, **options)
            except BrokenProcessPool:
                self.workers.remove(worker)
                worker.executor.shutdown(wait=False)
            else:
                return worker
        executor = ProcessPoolExecutor(
            1, self.context, initializer=_begin, initargs=(self.folder, this_process())
        )
        before = set(multiprocessing.active_children())
        task = executor.submit(function, *args, **options)
        (process,) = set(multiprocessing.active_children()) - before
        self.workers.append(_Worker(executor, process, task))
        return self.workers[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes end what they are at, and end."""
        for worker in self.workers:
            worker.executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End the processes, and what they have started, at once."""
        end_processes(worker.process.pid for worker in self.workers if worker.process.pid)


class MultiProc(MultiProcPlugin):
    """Nipype's plugin of that name with :class:`Workers`."""

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool = Workers(self._cwd, multiprocessing.get_context(self.plugin_args.get('mp_context')))

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        worker = self.pool.start(run_node, node, updatehash, self._taskid)
        self._task_obj[self._taskid] = worker.task
        worker.task.add_done_callback(partial(self._take, self._taskid, worker.process))
        return int(self._taskid)

    def _take(self, number: int, process: BaseProcess, task: Future[Any]) -> None:
        """Keep the result of a task, whatever became of it: Nipype waits for as long as there is none."""
        error = task.exception()
        if isinstance(error, BrokenProcessPool):
            error = _loss(process)
        failed = {'result': None, 'traceback': format_exception(error), 'taskid': number}
        self._taskresult[number] = task.result() if error is None else failed


def _loss(process: BaseProcess) -> ScanError:
    """Return what is said of a step whose process is lost."""
    deadline = monotonic() + _EXIT_CODE_S
    while process.exitcode is None and monotonic() < deadline:  # another thread may be asking for it
        sleep(0.01)
    ended = 'is gone' if process.exitcode is None else end_of(process.exitcode)
    return ScanError(
        f'The process that worked on it {ended}.',
        fix='If memory has run out, give it more or choose a smaller --nprocs, and run the same command again.',
    )
