"""Running a graph: Nipype's configuration, the scheduler, progress, and what went wrong."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import re
import shutil
import subprocess
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bidsharm.workflows.clusters import SUBMIT, UNWAITED, check_submission, open_plugin
from bidsharm.workflows.leftovers import drop_spoilt
from bidsharm.workflows.pool import Workers
from nipype import config
from nipype import logging as nipype_logging
from nipype.pipeline import engine as pe
from nipype.pipeline import plugins

from bidsharm.bids.names import ScanFile
from bidsharm.errors import NO_MEMORY, SYSTEM_ERRORS, UNWRITTEN, ConfigurationError, UsageError
from bidsharm.files import MAX_TEXT, read_bytes, read_text
from bidsharm.settings import Settings, reason
from bidsharm.temporary import temporary_folder

#: Seconds that Graphviz may take for the picture of a graph.
DRAWING_S = 120


@dataclass(frozen=True)
class Failure:
    """A node that failed.

    Parameters
    ----------
    node
        Full name of the node.
    what, where, fix
        The error in words.
    details
        Traceback.
    file
        Crash file.
    """

    node: str
    what: str
    where: str = ''
    fix: str = ''
    details: str = ''
    file: Path | None = None


def belongs(failure: Failure, scan: ScanFile) -> bool:
    """Say whether a failed node works on a scan, by the names of the graphs around it."""
    return any(f'_{scan.node}_' in f'_{part}_' for part in failure.node.split('.') if part.endswith('_wf'))


def of_graph(failure: Failure) -> bool:
    """Say whether it was the whole graph that failed, not one of its nodes."""
    return bool(failure.node) and '.' not in failure.node


def configure(settings: Settings, log_dir: Path) -> None:
    """Set Nipype up: quiet on the screen, everything in a file, crash files as text."""
    _take_steady_clock()
    plugin = load_plugin(settings.use_plugin)
    submits = plugin is not None and plugin[0] in SUBMIT
    config.update_config({
        'execution': {
            'crashdump_dir': str(log_dir),
            'crashfile_format': 'txt',
            'stop_on_first_crash': str(settings.stop_on_first_crash).lower(),
            'check_version': 'false',
            # Looking into a cluster's queue costs its controller something; files come over a shared file system.
            'poll_sleep_duration': '2' if submits else '0.1',
            'job_finished_timeout': '60' if submits else '5',
            'remove_unnecessary_outputs': 'false',
            'hash_method': 'timestamp',
        },
        'logging': {'log_to_file': 'false'},
    })  # fmt: skip
    if settings.resource_monitor:
        config.enable_resource_monitor()
    handler = logging.FileHandler(log_dir / 'nipype.log', delay=True)
    handler.setFormatter(logging.Formatter('%(asctime)s %(name)s %(levelname)s %(message)s'))
    loggers = [logging.getLogger('nipype'), *nipype_logging.loggers.values()]
    for logger in loggers:
        for old in list(logger.handlers):
            logger.removeHandler(old)
    logging.getLogger('nipype').addHandler(handler)
    if settings.verbose:
        logging.getLogger('nipype').addHandler(logging.StreamHandler())
    logging.getLogger('nipype').propagate = False
    for logger in loggers[1:]:
        logger.setLevel(logging.DEBUG if settings.verbose > 1 else logging.INFO)


def _take_steady_clock() -> None:
    """Have Nipype measure its pauses by a clock that nobody sets: by that of the day, one set back a day is a pause of a day."""
    for module in ('nipype.pipeline.plugins.base', 'nipype.utils.filemanip'):
        vars(importlib.import_module(module))['time'] = time.monotonic


def load_plugin(path: Path | None) -> tuple[str, dict[str, Any], dict[str, Any] | None] | None:
    """Read a plugin file: ``plugin``, ``plugin_args`` and, for GPU nodes, ``gpu_plugin_args``.

    Raises
    ------
    UsageError
        If the file cannot be read, holds unknown keys, or names a plugin that Nipype does not have.
    """
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f'The plugin file cannot be read: {reason(error)}.', where=str(path)) from None
    known = {'plugin', 'plugin_args', 'gpu_plugin_args'}
    if not isinstance(content, dict) or 'plugin' not in content or set(content) - known:
        raise UsageError(
            'The plugin file must hold "plugin" and may hold "plugin_args" and "gpu_plugin_args".',
            where=str(path),
        )
    name = str(content['plugin'])
    if name in UNWAITED:
        raise UsageError(
            f'The plugin "{name}" hands its jobs over and does not wait for them.', where=str(path),
            fix=f'Take {name.removesuffix("Graph").removesuffix("DAGMan")}, or one job per subject.',
        )  # fmt: skip
    if not hasattr(plugins, f'{name}Plugin'):
        raise UsageError(
            f'Nipype has no plugin "{name}".', where=str(path), fix='For example MultiProc or SLURM.'
        )
    arguments, gpu = (content.get(key) or {} for key in ('plugin_args', 'gpu_plugin_args'))
    if not isinstance(arguments, dict) or not isinstance(gpu, dict):
        raise UsageError('"plugin_args" and "gpu_plugin_args" must hold names and values.', where=str(path))
    return name, dict(arguments), gpu or None


def gpu_slots(device: str) -> int:
    """Return how many GPU nodes may run at once: one per card that can be seen, one for a named card.

    Nipype counts the cards of the whole machine; only torch knows which of them this process may use.
    """
    if device in ('cpu', ''):
        return 0
    if device == 'cuda':
        import torch

        return max(torch.cuda.device_count(), 1)
    return 1


def run_graph(
    workflow: pe.Workflow,
    settings: Settings,
    *,
    device: str = 'cpu',
    on_node: Callable[[Any, str], None] | None = None,
) -> None:
    """Run a graph; failed nodes leave crash files and their scans are skipped, the others go on.

    Parameters
    ----------
    workflow
        The graph, with ``base_dir`` set.
    settings
        Processes, memory, plugin.
    device
        Resolved device, for the number of GPU slots.
    on_node
        Called with the node and ``start``, ``end`` or ``exception``.

    Raises
    ------
    ConfigurationError
        If the plugin cannot submit, or its cluster takes no job.
    UsageError
        If the plugin needs another working folder.
    """
    plugin = load_plugin(settings.use_plugin)
    arguments: dict[str, Any] = {
        'n_procs': settings.nprocs,
        'memory_gb': settings.mem_gb,
        'raise_insufficient': False,
        'maxtasksperchild': 20,
    }
    if device not in ('cpu', ''):
        arguments['n_gpu_procs'] = gpu_slots(device)
    name = 'MultiProc'
    if plugin:
        name, given, _ = plugin
        check_submission(name, settings)
        arguments = {**arguments, **given} if name in ('MultiProc', 'LegacyMultiProc') else given
    if on_node is not None:
        arguments['status_callback'] = on_node
    Path(workflow.base_dir).mkdir(parents=True, exist_ok=True)
    drop_spoilt(workflow)
    # Nipype's monitor and some tools drop files where the process stands: not where the user called us.
    with temporary_folder('.run', Path(workflow.base_dir)) as here:
        _run_in(here, workflow, name, arguments)


def _run_in(folder: Path, workflow: pe.Workflow, plugin: str, arguments: dict[str, Any]) -> None:
    runner = None
    log_dir = Path(config.get('execution', 'crashdump_dir') or folder)
    before = set(log_dir.glob('crash-*'))
    try:
        with contextlib.chdir(folder):
            runner = open_plugin(plugin, arguments, folder)
            workflow.run(plugin=runner)
    except (ConfigurationError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):  # nobody waits for the steps that run
            _kill_workers(runner)
        raise
    except Exception as error:  # noqa: BLE001 - nipype raises RuntimeError when any node failed; the crash files tell
        logging.getLogger('nipype.workflow').error('the graph ended with: %s', error)
        if set(log_dir.glob('crash-*')) <= before:  # it was no node that failed
            file = log_dir / f'crash-{datetime.now(UTC):%Y%m%d-%H%M%S}-{workflow.name}-{uuid.uuid4()}.txt'
            file.write_text(f'Node: {workflow.name}\n\n{traceback.format_exc()}')
    finally:
        _end_workers(runner)


def keep_resources(workflow: pe.Workflow, log_dir: Path) -> None:
    """Take what Nipype's monitor wrote beside the graph into the log folder; every graph has a file of its own.

    Nipype writes none for a graph in which a node failed.
    """
    file = Path(workflow.base_dir) / workflow.name / 'resource_monitor.json'
    if file.is_file():
        count = len(list(log_dir.glob('resource_monitor*.json')))
        shutil.move(file, log_dir / f'resource_monitor{f"_{count + 1}" if count else ""}.json')


def _kill_workers(runner: Any) -> None:
    pool = getattr(runner, 'pool', None)
    if isinstance(pool, Workers):
        pool.kill()


def _end_workers(runner: Any) -> None:
    """Wait for what still runs: after a first crash nipype leaves its workers to themselves."""
    pool = getattr(runner, 'pool', None)
    if isinstance(pool, Executor):
        pool.shutdown(wait=True)


#: Longer lines of a crash file are what a program printed, and cut before they are searched.
LONGEST_LINE = 2000
_NODE = re.compile(r'^Node: (.+)$', re.MULTILINE)
_OURS = re.compile(r'^[ \t]*bidsharm\.errors\.(\w+): (.+)$', re.MULTILINE)
_LAST = re.compile(
    r'^[ \t]*([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\w*)(?:: ?(.*))?$', re.MULTILINE
)
_NO_RESULT = re.compile(r'FileNotFoundError: .*/result_\w+\.pklz')
_NUMBERED = re.compile(r'\[Errno (\d+)\] [^:]*(?:: (.+))?')
_SIGNAL = re.compile(r'Return code: (-\d+)')


def read_failure(path: Path) -> Failure:
    """Read one of Nipype's crash files; whatever it looks like, something readable comes back."""
    try:
        text = read_bytes(path, MAX_TEXT).decode('utf-8', 'replace')
    except OSError as error:
        return Failure(node='', what=f'a crash file could not be read: {reason(error)}', file=path)
    searched = '\n'.join(line[:LONGEST_LINE] for line in text.split('\n'))
    found = _NODE.search(searched)
    node = found[1].strip() if found else ''
    ours = _OURS.findall(searched)
    if ours:
        return Failure(node, ours[-1][1].strip(), details=text, file=path)
    ended = _SIGNAL.search(searched)
    if ended:
        what = f'An external program was ended by signal {-int(ended[1])} (it crashed, or memory ran out).'
        return Failure(node, what, details=text, file=path)
    # Where a step could not write its result, Nipype stumbles once more over that.
    last = [found for found in _LAST.findall(searched) if not _NO_RESULT.fullmatch(': '.join(found))]
    if last and (told := _of_system(*last[-1])):
        what, where, fix = told
        return Failure(node, what, where, fix, details=text, file=path)
    # An error without a message stands there as its bare name.
    what = (
        ': '.join(filter(None, (last[-1][0].rsplit('.', 1)[-1], last[-1][1][:300])))
        if last
        else 'The step failed.'
    )
    return Failure(node, what, details=text, file=path)


def _of_system(kind: str, words: str) -> tuple[str, str, str] | None:
    """Return what, where and fix of an error by which the machine says that it can give no more."""
    if kind.endswith('MemoryError'):
        what, fix = NO_MEMORY
        return what, '', fix
    found = _NUMBERED.match(words)
    number = int(found[1]) if found else 0
    # NumPy says only how much of an array it could write.
    if kind.endswith('OSError') and UNWRITTEN.fullmatch(words):
        number = errno.ENOSPC
    if number not in SYSTEM_ERRORS:
        return None
    what, fix = SYSTEM_ERRORS[number]
    place = (found[2] or '').strip('\'"') if found else ''
    if not place and number in (errno.ENOSPC, errno.EDQUOT):
        fix = 'Make room where the output folder and the working folder lie, and run the same command again.'
    return (f'{place}: {what}' if place else what), '', fix


def read_failures(log_dir: Path, *, since: set[Path] | None = None) -> list[Failure]:
    """Read the crash files of a run, oldest first."""
    files = sorted(log_dir.glob('crash-*'), key=lambda file: (file.stat().st_mtime, file.name))
    return [read_failure(file) for file in files if file not in (since or set())]


def draw_graph(workflow: pe.Workflow, path: Path) -> None:
    """Write the graph as a dot file, and as a picture where Graphviz is installed."""
    if shutil.which('dot'):
        workflow.write_graph(dotfilename=str(path), graph2use='colored', format='dot')
        # For a large graph Graphviz may take hours; the file from which it draws is there.
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                ['dot', '-Tsvg', f'-o{path.with_suffix(".svg")}', str(path)],
                capture_output=True, stdin=subprocess.DEVNULL, timeout=DRAWING_S, check=False,
            )  # fmt: skip
        return
    edges = workflow._create_flat_graph().edges()
    lines = ''.join(f'  "{source.fullname}" -> "{target.fullname}";\n' for source, target in edges)
    path.write_text(f'digraph bidsharm {{\n{lines}}}\n')
