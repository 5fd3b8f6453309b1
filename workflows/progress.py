"""Progress a person can read: a bar where there is a terminal, one line a scan where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from bidsharm.workflows.events import BatchStarted, TargetLearning
from bidsharm.workflows.logs import Screen
from bidsharm.workflows.steps import StepRecorder
from nipype.pipeline import engine as pe
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


def counted(number: int, what: str) -> str:
    """Return a number with its noun: ``1 scan``, ``2 scans``."""
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


class Progress:
    """Counts finished scans, and the steps of the batch that runs.

    Parameters
    ----------
    screen
        Where to write.
    total
        Number of scans of the run.
    recorder
        Who else takes the messages of the scheduler.
    """

    def __init__(self, screen: Screen, *, total: int, recorder: StepRecorder) -> None:
        self.screen = screen
        self.recorder = recorder
        self.total = total
        self.done = 0
        self.started: set[str] = set()
        self.bars = Bars(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=screen.console, disable=not screen.console.is_terminal,
        )  # fmt: skip
        self.scans = self.bars.add_task('scans', total=total)
        self.steps = self.bars.add_task('steps', total=None, visible=False)

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def skip(self, count: int) -> None:
        """Count scans that were done before."""
        self.done += count
        self.bars.advance(self.scans, count)

    def start_batch(self, workflow: pe.Workflow, names: Iterable[str]) -> None:
        """Show the steps of a new batch, and how many scans are worked on."""
        names = list(names)
        steps = self._start(workflow, f'working on {counted(len(names), "scan")}')
        self.recorder.events.emit(BatchStarted(names, steps))

    def start_target(self, workflow: pe.Workflow, names: Iterable[str], target: str) -> None:
        """Show the steps of learning a target from some scans."""
        names = list(names)
        self._start(workflow, f'learning the target from {counted(len(names), "scan")}')
        self.recorder.events.emit(TargetLearning(target, names))

    def _start(self, workflow: pe.Workflow, doing: str) -> int:
        # Nipype does not run the nodes that only hand on.
        run = [name for name in workflow.list_node_names() if not name.endswith(('inputnode', 'outputnode'))]
        self.bars.reset(self.steps, total=len(run), visible=True)
        if self.screen.console.is_terminal:  # the bars say it
            self.screen.note(doing)
        else:
            self.screen.say(doing)
        return len(run)

    def on_node(self, node: Any, status: str) -> None:
        """Take a message of the scheduler."""
        self.recorder.on_node(node, status)
        name = str(getattr(node, 'name', ''))
        if status == 'start':
            self.started.add(str(getattr(node, 'fullname', name)))
            self.bars.update(self.steps, description=f'steps ({name})')
            return
        self.bars.advance(self.steps)
        if status == 'exception':
            self.screen.say(f'  a step failed: {getattr(node, "fullname", name)}', style='red')
        elif name == 'ds_qc' and str(getattr(node, 'fullname', name)) in self.started:  # not passed over
            self.done += 1
            self.bars.advance(self.scans)
            path = str(node.inputs.qc_path)
            self.screen.say(f'  [{self.done}/{self.total}] {path.rsplit("/", 1)[-1]} written')
