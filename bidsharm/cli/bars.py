"""Progress bars of commands that prepare scans and train on them."""

from __future__ import annotations

from typing import Any


class Bars:
    """Progress bars on standard error; only the first of several processes shows them."""

    def __init__(self, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn('{task.fields[said]}'),
        )
        self.bar = Progress(*columns, console=Console(stderr=True, highlight=False), disable=not shown)

    def __enter__(self) -> Any:
        self.bar.start()
        return self.part

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def part(self, name: str) -> Any:
        """Return a function that is told how far a part of the work is."""
        from rich.markup import escape

        task = self.bar.add_task(name, total=None, said='')
        return lambda done, total, said: self.bar.update(task, completed=done, total=total, said=escape(said))
