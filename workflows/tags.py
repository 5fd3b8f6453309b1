"""Tags on graphs, as niworkflows' splicing reads them: a pipeline around can put its own step in the place of one of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from nipype.pipeline import engine as pe

Options = ParamSpec('Options')


def tag(name: str) -> Callable[[Callable[Options, pe.Workflow]], Callable[Options, pe.Workflow]]:
    """Decorate a function that builds a graph: the graph gets a tag.

    ``niworkflows.engine.splicer.splice_workflow`` (niworkflows 1.14.5) replaces what carries a tag, in the attribute ``_tag``, by another
    graph with the same fields in ``inputnode`` and ``outputnode``. niworkflows is not needed for setting it.

    Parameters
    ----------
    name
        For example ``harmonize.method``.
    """

    def decorate(build: Callable[Options, pe.Workflow]) -> Callable[Options, pe.Workflow]:
        @wraps(build)
        def tagged(*args: Options.args, **options: Options.kwargs) -> pe.Workflow:
            workflow = build(*args, **options)
            workflow._tag = name
            return workflow

        return tagged

    return decorate
