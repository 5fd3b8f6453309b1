"""The stock nipype interfaces for ANTs, on real ANTs where it is installed and on antspyx otherwise."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
import sys
from typing import Any

from nipype.interfaces import ants

from bidsharm.errors import ScanError
from bidsharm.interfaces.antspyx import TOOLS
from bidsharm.interfaces.isolated import end_of


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
    return name if has_real_ants() else f'{sys.executable} -m bidsharm.interfaces.antspyx {name}'


class _NoHashThreads:
    """Shared by the three tools: where the program is found; the number of threads never changes a result's identity."""

    tool: str
    inputs: Any

    def __init__(self, **inputs: Any) -> None:
        super().__init__(command=_tool(self.tool), **inputs)  # type: ignore[call-arg]
        self.inputs.trait('num_threads').nohash = True

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        # Nipype would go on and miss the output file; what the program said is more to the point.
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


class N4BiasFieldCorrection(_NoHashThreads, ants.N4BiasFieldCorrection):
    """N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908)."""

    tool = 'N4BiasFieldCorrection'


class Registration(_NoHashThreads, ants.Registration):
    """antsRegistration (Avants et al. 2011, doi:10.1016/j.neuroimage.2010.09.025)."""

    tool = 'antsRegistration'


class ApplyTransforms(_NoHashThreads, ants.ApplyTransforms):
    """antsApplyTransforms."""

    tool = 'antsApplyTransforms'
