"""Progress a person can read: a bar where there is a terminal, one line a scan where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from nipype.pipeline import engine as pe
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


def counted(number: int, what: str) -> str:
    """Return a number with its noun: ``1 scan``, ``2 scans``."""
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


class Progress:
    """Counts finished scans, and the steps of the batch that runs.

    Parameters
    ----------
    console
        Where to write.
    total
        Number of scans of the run.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self.console = console
        self.total = total
        self.done = 0
        self.started: set[str] = set()
        self.bars = Bars(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
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

    def start_batch(self, workflow: pe.Workflow, names: Iterable[str], *, doing: str = 'working on') -> None:
        """Show the steps of a new batch, and in words what is being done with which scans."""
        names = list(names)
        # Nipype does not run the nodes that only hand on.
        run = [name for name in workflow.list_node_names() if not name.endswith(('inputnode', 'outputnode'))]
        self.bars.reset(self.steps, total=len(run), visible=True)
        if not self.console.is_terminal:
            self.console.print(f'{doing} {counted(len(names), "scan")}', markup=False)

    def on_node(self, node: Any, status: str) -> None:
        """Take a message of the scheduler."""
        name = str(getattr(node, 'name', ''))
        if status == 'start':
            self.started.add(str(getattr(node, 'fullname', name)))
            self.bars.update(self.steps, description=f'steps ({name})')
            return
        self.bars.advance(self.steps)
        if status == 'exception':
            self.console.print(
                f'  a step failed: {getattr(node, "fullname", name)}', markup=False, style='red'
            )
        elif name == 'ds_qc' and str(getattr(node, 'fullname', name)) in self.started:  # not passed over
            self.done += 1
            self.bars.advance(self.scans)
            path = str(node.inputs.qc_path)
            self.console.print(
                f'  [{self.done}/{self.total}] {path.rsplit("/", 1)[-1]} written', markup=False
            )
