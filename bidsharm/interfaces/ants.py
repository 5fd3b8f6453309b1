"""The stock nipype interfaces for ANTs, on real ANTs where it is installed and on antspyx otherwise."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from nipype.interfaces import ants
from nipype.interfaces.base import CommandLine
from nipype.utils.filemanip import canonicalize_env, indirectory, split_filename

from bidsharm.errors import ScanError
from bidsharm.interfaces import isolated
from bidsharm.interfaces.antspyx import TOOLS
from bidsharm.interfaces.isolated import end_of
from bidsharm.interfaces.usage import measured
from bidsharm.processes import as_parent


@functools.cache
def has_real_ants() -> bool:
    """Say whether all ANTs programs that bidsharm uses are on the PATH; a mixture of two versions is not used."""
    return all(shutil.which(tool) for tool in TOOLS)


@functools.cache
def ants_version() -> str:
    """Return what runs, honestly: ``ANTs 2.5.4``, or ``antspyx 0.6.3``."""
    if not has_real_ants():
        return f'antspyx {importlib.metadata.version("antspyx")}'
    try:
        answer = subprocess.run(
            ['antsRegistration', '--version'], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 'ANTs (unknown version)'
    words = [line.split(':', 1)[1].strip() for line in answer.splitlines() if line.startswith('ANTs Version')]
    return f'ANTs {words[0]}' if words else 'ANTs (unknown version)'


def _tool(name: str) -> str:
    return name if has_real_ants() else f'{shlex.quote(sys.executable)} -m bidsharm.interfaces.antspyx {name}'


#: A path that neither the shell nor the argument syntax of ANTs (``MI[fixed,moving,1]``) takes apart.
_PLAIN = re.compile(r'[\w./+@%=-]+')


@contextlib.contextmanager
def _plain_names(inputs: Any, cwd: Path) -> Iterator[None]:
    """Give input files whose paths hold spaces or signs a plain name, by links in the node's folder.

    The stock interfaces quote no file name, and ANTs splits its own arguments once more.
    """
    before: dict[str, Any] = {}
    links: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, str) or _PLAIN.fullmatch(value) or not os.path.isfile(value):
            return value
        if value not in links:
            links[value] = f'input_{len(links)}{split_filename(value)[2]}'
            (cwd / links[value]).unlink(missing_ok=True)
            (cwd / links[value]).symlink_to(value)
        return links[value]

    with indirectory(cwd):
        for name, value in inputs.get_traitsfree().items():
            replaced = plain(value)
            if replaced != value:
                before[name] = value
                setattr(inputs, name, replaced)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(inputs, name, value)


class _Bounded(CommandLine):
    """A program that is stopped after :data:`bidsharm.interfaces.isolated.STEP_LIMIT_S`; Nipype's own wait for ever.

    It comes after the stock interfaces in the order of classes, and takes the place of the part of Nipype that they end in.
    """

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        runtime.cmdline = self.cmdline
        runtime.stdout = runtime.stderr = runtime.merged = ''  # Nipype reads them whatever happens
        runtime.environ.update(self._get_environ())
        runtime.success_codes = correct_return_codes
        folder = Path(runtime.cwd)
        (folder / 'command.txt').write_text(runtime.cmdline, encoding='utf-8')
        log = folder / 'said.log'
        # Into a file: a pipe would stay open for as long as anything that the program has started lives.
        with log.open('wb') as said:
            program = subprocess.Popen(
                _tethered(runtime.cmdline), shell=True, cwd=folder,
                env=canonicalize_env({**runtime.environ, **as_parent()}),
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                runtime.returncode = program.wait(timeout=isolated.STEP_LIMIT_S)
            except subprocess.TimeoutExpired:
                raise ScanError(
                    f'{getattr(self, "tool", self.cmd)} took more than {isolated.STEP_LIMIT_S} s and was stopped.',
                    fix='Look whether the machine is overloaded, or raise BIDSHARM_STEP_LIMIT_S.',
                ) from None
            finally:
                _end_all(program)
        runtime.stdout = runtime.merged = log.read_text(encoding='utf-8', errors='replace')
        return runtime


def _tethered(command: str) -> str:
    """Return a command whose program ends with this process; it takes the place of the shell, which would not."""
    if has_real_ants() and sys.platform == 'linux':
        command = f'{shlex.quote(sys.executable)} -m bidsharm.processes {command}'
    return f'exec {command}'


def _end_all(program: subprocess.Popen[bytes]) -> None:
    """End a program that still runs, the shell around it, and what it has started."""
    if program.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(program.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    program.kill()
    program.wait(timeout=60)


class _Tool:
    """What the three tools share.

    Where the program is found, file names that it can take, what is said when it fails, and that the number of
    threads is no part of a result's identity.
    """

    tool: str
    inputs: Any

    def __init__(self, **inputs: Any) -> None:
        super().__init__(command=_tool(self.tool), **inputs)  # type: ignore[call-arg]
        self.inputs.trait('num_threads').nohash = True

    @property
    def version(self) -> str | None:
        """The version as Nipype compares it; its own way to ask for it has no time limit."""
        known = re.fullmatch(r'ANTs (\d[\w.+-]*)', ants_version())
        return ants.base.Info.parse_version(f'ANTs Version: {known[1]}') if known else None

    def run(self, cwd: str | None = None, **options: Any) -> Any:
        """Run the tool in a folder (the current one by default)."""
        folder = Path(cwd or '.').absolute()
        with _plain_names(self.inputs, folder):
            return super().run(cwd=str(folder), **options)  # type: ignore[misc]

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        # Nipype would go on and miss the output file; what the program said is more to the point.
        with measured(Path(runtime.cwd)):
            runtime = super()._run_interface(runtime, correct_return_codes)  # type: ignore[misc]
        code = runtime.returncode
        if code not in correct_return_codes:
            said = [
                line.strip() for line in (runtime.stderr or runtime.stdout or '').splitlines() if line.strip()
            ]
            words = f' Its last words: {" | ".join(said[-4:])[-400:]}' if said else ''
            # A shell reports a signal as 128 and its number.
            raise ScanError(f'{self.tool} {end_of(128 - code if code > 128 else code)}.{words}')
        return runtime

    def aggregate_outputs(self, *args: Any, **options: Any) -> Any:
        """Find what the tool wrote."""
        try:
            return super().aggregate_outputs(*args, **options)  # type: ignore[misc]
        except FileNotFoundError as error:
            missing = re.search(r"'([^']*)'", str(error))
            raise ScanError(
                f'{self.tool} ended without an error but did not write {Path(missing[1]).name if missing else "its result"}.',
                fix='Look at what it said in said.log, in the folder of the step, and whether the disk is full.',
            ) from error


class N4BiasFieldCorrection(_Tool, ants.N4BiasFieldCorrection, _Bounded):
    """N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908)."""

    tool = 'N4BiasFieldCorrection'


class Registration(_Tool, ants.Registration, _Bounded):
    """antsRegistration (Avants et al. 2011, doi:10.1016/j.neuroimage.2010.09.025)."""

    tool = 'antsRegistration'


class ApplyTransforms(_Tool, ants.ApplyTransforms, _Bounded):
    """antsApplyTransforms."""

    tool = 'antsApplyTransforms'
