"""Nipype's SLURM plugins, made to notice what becomes of every job.

Nipype waits for the result file of a job, takes one of an earlier run for it, and ends the whole graph when a job was
killed; its graph plugin does not wait at all. What they submit, and how, is theirs.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from bidsharm.workflows.slurm_queue import POLL_S, Job, Queue, ask, job_template
from nipype.pipeline import plugins
from nipype.pipeline.plugins.tools import report_crash

from bidsharm.errors import ConfigurationError


def submit(batch: Path, script: Path, node: Any, arguments: str, *, taken: int) -> Job:
    """Hand one job to SLURM.

    Nipype's plugins do this too, but take an ``sbatch`` that fails for one that said nothing.

    Parameters
    ----------
    batch, script
        Nipype's job script, and the Python script that it runs.
    node
        The step.
    arguments
        For ``sbatch``.
    taken
        How many jobs SLURM has taken before.

    Raises
    ------
    ConfigurationError
        If SLURM does not take it, in three attempts.
    """
    submitted = time.monotonic()
    # What the user gives comes last and wins.
    command = ['sbatch', '--parsable', f'--job-name={node.name}', f'--output={script.parent}/slurm-%j.out']
    for attempt in range(3):
        time.sleep(attempt * POLL_S)
        code, text = ask(*command, *shlex.split(arguments), str(batch))
        number = text.strip().partition(';')[0]
        if code == 0 and number.isdigit():
            return Job(int(number), node, script, submitted)
    raise ConfigurationError(
        f'SLURM did not take a job (it had taken {taken}): {text.strip()[-600:]}', where='--use-plugin',
        fix='Correct sbatch_args in the plugin file; where the number of jobs is limited, use SLURM with max_jobs.',
    )  # fmt: skip


class NamesCause:
    """Goes before a plugin of Nipype that submits: a job that left nothing costs its step, and the step says why.

    Nipype's report of a job without a result fails itself, with a TypeError that ends the graph.
    """

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        found = (result or {}).get('traceback') or ''
        lines = found.splitlines(keepends=True) if isinstance(found, str) else list(found)
        return str(report_crash(node, traceback=lines, hostname=(result or {}).get('hostname')))

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        # What is submitted has to be done; a result of an earlier run must not pass for that of a killed job.
        for file in Path(node.output_dir()).glob('result_*.pklz'):
            file.unlink(missing_ok=True)
        return super()._submit_job(node, updatehash=updatehash)  # type: ignore[misc]


class Slurm(NamesCause, plugins.SLURMPlugin):
    """Nipype's SLURM plugin: a step is submitted when those before it are done.

    Parameters
    ----------
    plugin_args
        As Nipype takes them.
    folder
        A folder of this run that all nodes see.
    variables
        Environment for the jobs.
    """

    def __init__(self, plugin_args: dict[str, Any], *, folder: Path, variables: dict[str, str]) -> None:
        self.queue = Queue(folder)
        self.jobs: dict[int, Job] = {}
        template = job_template(plugin_args.get('template'), folder, variables)
        super().__init__(plugin_args={**plugin_args, 'template': template})

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run a graph; whatever ends it, no job of it stays in the queue."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self.queue.leave(self.jobs)

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        batch = Path(scriptfile)
        script = batch.with_name(batch.stem.removeprefix('batchscript_') + '.py')
        own = node.plugin_args.get('sbatch_args', '')
        general = '' if own and node.plugin_args.get('overwrite') else self._sbatch_args or ''
        job = submit(batch, script, node, f'{general} {own}', taken=len(self.jobs))
        self.jobs[job.number] = job
        self._pending[job.number] = node.output_dir()
        return job.number

    def _is_pending(self, taskid: int) -> bool:
        return False  # only asked by _get_result of Nipype, which is called once a job has ended

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        job = self.jobs[taskid]
        end = self.queue.end_of(job)
        if end is None:
            return None
        failure = job.failure(end)
        if not failure and not glob(f'{escape(str(self._pending[taskid]))}/result_*.pklz'):
            if job.within_grace():
                return None
            failure = job.error(f'The job {job.number} of this step left no result.')
        if failure:
            return {'result': None, 'traceback': failure.splitlines(keepends=True), 'hostname': 'unknown'}
        result: dict[str, Any] = super()._get_result(taskid)
        return result

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self.jobs[taskid]


class SlurmGraph(plugins.SLURMGraphPlugin):
    """Nipype's SLURMGraph plugin: all steps are submitted at once, with their dependencies. This one waits for them.

    Parameters
    ----------
    plugin_args, folder, variables
        As for :class:`Slurm`.
    """

    def __init__(self, plugin_args: dict[str, Any], *, folder: Path, variables: dict[str, str]) -> None:
        self.queue = Queue(folder)
        self.jobs: list[Job] = []
        template = job_template(plugin_args.get('template'), folder, variables)
        # Nipype warns that its graph plugins tell no progress.
        given = {name: value for name, value in plugin_args.items() if name != 'status_callback'}
        super().__init__(plugin_args={**given, 'template': template})
        self._status_callback = plugin_args.get('status_callback')

    def _submit_graph(
        self, pyfiles: Sequence[str], dependencies: Mapping[int, Sequence[int]], nodes: Sequence[Any]
    ) -> None:
        try:
            for index, script in enumerate(pyfiles):
                before = [self.jobs[other].number for other in dependencies.get(index, ())]
                self.jobs.append(self._submit(Path(script), nodes[index], before))
                self._tell(nodes[index], 'start')
            self._wait(dependencies)
        finally:
            self.queue.leave(job.number for job in self.jobs)

    def _submit(self, script: Path, node: Any, before: Sequence[int]) -> Job:
        template, arguments = self._get_args(node, ['template', 'sbatch_args'])
        batch = script.with_name(f'batchscript_{script.stem}.sh')
        batch.write_text(f'{template}\n{shlex.join([sys.executable, str(script)])}\n')
        if before:
            behind = ':'.join(str(number) for number in before)
            arguments += f' --kill-on-invalid-dep=yes --dependency=afterok:{behind}'
        return submit(batch, script, node, arguments, taken=len(self.jobs))

    def _wait(self, dependencies: Mapping[int, Sequence[int]]) -> None:
        """Wait until every job has ended; jobs behind a failed one are cancelled by SLURM and are no failures."""
        bad: set[int] = set()
        failed = 0
        left = list(range(len(self.jobs)))
        while left:
            for index in list(left):
                before = set(dependencies.get(index, ()))
                # In order: a job that SLURM cancelled behind a failed one must not be judged before that one.
                end = None if before & set(left) else self._settle(index, behind=bool(before & bad))
                if end is None:
                    continue
                left.remove(index)
                if end:
                    bad.add(index)
                failed += end == 'failed'
                if end == 'failed' and self._config['execution']['stop_on_first_crash'] == 'true':
                    raise RuntimeError(f'{self.jobs[index].node.fullname} failed')
            if left:
                time.sleep(POLL_S)
        if failed:
            raise RuntimeError(f'{failed} of {len(self.jobs)} jobs failed')

    def _settle(self, index: int, behind: bool) -> str | None:
        """Return None while a job runs, nothing when it went well, ``failed``, or ``skipped`` behind a failed one."""
        job = self.jobs[index]
        if behind:
            self.queue.refresh()
            if job.number in self.queue.jobs:
                self.queue.cancel([job.number])  # where --kill-on-invalid-dep is not honoured
                return None
            return 'skipped'
        end = self.queue.end_of(job)
        if end is None:
            return None
        failure = job.failure(end)
        if not failure:
            self._tell(job.node, 'end')
            return ''
        if not _has_crash_file(job):
            # A step that fails writes its crash file itself; one that was killed or could not be loaded does not.
            if isinstance(end, int) and end < 128 and not job.dump.exists() and job.within_grace():
                return None
            report_crash(job.node, traceback=failure.splitlines(keepends=True))
        self._tell(job.node, 'exception')
        return 'failed'

    def _tell(self, node: Any, status: str) -> None:
        if self._status_callback:
            self._status_callback(node, status)


def _has_crash_file(job: Job) -> bool:
    """Say whether a step has written a crash file since its job was handed over."""
    folder = Path(job.node.config['execution']['crashdump_dir'])
    head = f'Node: {job.node.fullname}\n'
    return any(
        file.read_text(errors='replace').startswith(head) for file in folder.glob(f'crash-*-{job.node._id}-*')
    )
