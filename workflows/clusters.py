"""Plugins that hand steps to a cluster: what they need, which class runs them, and which device their jobs may use."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bidsharm.workflows.pool import MultiProc
from bidsharm.workflows.slurm import NamesCause, Slurm, SlurmGraph
from nipype.pipeline import plugins

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.execution import resolve_device
from bidsharm.settings import Settings

#: Plugins of Nipype that submit jobs, and the program by which they do it.
SUBMIT = {
    'SLURM': 'sbatch', 'SLURMGraph': 'sbatch', 'SGE': 'qsub', 'PBS': 'qsub', 'LSF': 'bsub', 'OAR': 'oarsub',
    'Condor': 'condor_qsub',
}  # fmt: skip

#: Those that return when all is submitted; nothing would say when it is done.
UNWAITED = ('SGEGraph', 'PBSGraph', 'CondorDAGMan')


def check_submission(plugin: str, settings: Settings) -> None:
    """Refuse here what would fail in every job.

    Raises
    ------
    ConfigurationError
        If the program that submits is not installed.
    UsageError
        If the working folder is a temporary one of this machine, or Nipype could not write its name into a job script.
    """
    program = SUBMIT.get(plugin)
    if program is None:
        return
    if shutil.which(program) is None:
        raise ConfigurationError(
            f'The plugin {plugin} submits with {program}, which is not installed here.', where='--use-plugin',
            fix='Run on a machine of the cluster from which jobs can be submitted.',
        )  # fmt: skip
    if settings.work_dir is None:
        raise UsageError(
            f'The plugin {plugin} needs a working folder that all machines of the cluster see.',
            where='--use-plugin', fix='Give one with --work-dir.',
        )  # fmt: skip
    if re.search(r'[^\w./+@:,=-]', str(settings.work_dir)):
        raise UsageError(
            'Nipype submits jobs by shell commands in which such a name does not hold together.',
            where=f'--work-dir {settings.work_dir}', fix='Give a path without spaces and special characters.',
        )  # fmt: skip


def open_plugin(name: str, arguments: dict[str, Any], folder: Path) -> Any:
    """Return the plugin that runs a graph.

    Parameters
    ----------
    name
        As Nipype names it, without ``Plugin``.
    arguments
        ``plugin_args``.
    folder
        A folder of this run, beside the graph.
    """
    if name == 'MultiProc':
        return MultiProc(arguments)
    if name not in SUBMIT:
        return getattr(plugins, f'{name}Plugin')(plugin_args=arguments)
    variables = job_variables()
    os.environ.update(variables)  # LOGNAME for the plugins themselves, all of them for jobs that inherit
    if name in ('SLURM', 'SLURMGraph'):
        kind = Slurm if name == 'SLURM' else SlurmGraph
        return kind(arguments, folder=folder, variables=variables)
    theirs = getattr(plugins, f'{name}Plugin')
    return type(theirs.__name__, (NamesCause, theirs), {})(plugin_args=arguments)


def job_variables() -> dict[str, str]:
    """Return the environment without which a job fails: the user's name, and where Python finds its packages.

    Jobs are run by the same Python as this process; what it finds beyond its own folders has to be told.
    """
    own = tuple({str(Path(prefix).resolve()) + os.sep for prefix in (sys.prefix, sys.base_prefix)})
    places = [str(Path(entry).resolve()) for entry in sys.path if Path(entry).is_dir()]
    found = [place for place in dict.fromkeys(places) if not f'{place}{os.sep}'.startswith(own)]
    variables = {'LOGNAME': os.environ.get('LOGNAME') or _user()}
    return {**variables, 'PYTHONPATH': os.pathsep.join(found)} if found else variables


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return f'uid{os.getuid()}'


def devices(
    settings: Settings, card: Card, plugin: tuple[str, dict[str, Any], dict[str, Any] | None] | None
) -> tuple[str, str]:
    """Return the device of the method, and that of brain extraction.

    Where jobs are submitted, this machine says nothing about the one they will run on. There ``auto`` means a GPU
    for a method that can use one if the plugin file has ``gpu_plugin_args``, and a GPU that is named is believed; its
    job looks. Brain extraction stays on the CPU: it takes seconds, and would wait in the queue for a GPU.

    Parameters
    ----------
    settings
        Settings of the run.
    card
        Card of the method.
    plugin
        As ``load_plugin`` returns it.

    Raises
    ------
    ConfigurationError
        If the device is not there, or cannot be there.
    """
    needed = card.uses_device or settings.device != 'auto'
    if plugin is None or plugin[0] not in SUBMIT:
        device = resolve_device(settings.device) if needed else 'cpu'
        return (device if card.uses_device else 'cpu'), device
    if settings.device.startswith('cuda'):
        asked = settings.device if ':' in settings.device else 'cuda:0'
    elif settings.device == 'auto':
        asked = 'cuda:0' if plugin[2] else 'cpu'
    else:
        asked = resolve_device(settings.device)
    return (asked if card.uses_device else 'cpu'), 'cpu'
