"""Run one ANTs tool out of the antspyx library: ``python -m bidsharm.interfaces.antspyx TOOL ARGS...``.

antspyx carries the compiled ANTs tools as functions, but no command-line programs. Running them through a process
of their own keeps the stock nipype interfaces usable and contains their crashes. Only the compiled module is loaded
(0.1 s); importing the whole of antspyx takes over a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from bidsharm.processes import tether

TOOLS = ('N4BiasFieldCorrection', 'antsApplyTransforms', 'antsRegistration')


def load_library() -> ModuleType:
    """Load the compiled part of antspyx without importing the package around it.

    Raises
    ------
    ImportError
        If antspyx is not installed or has another layout.
    """
    package = importlib.util.find_spec('ants')
    folders = list(package.submodule_search_locations or []) if package else []
    for folder in folders:
        for file in sorted(Path(folder).glob('lib.*')):
            spec = importlib.util.spec_from_file_location('ants.lib', file)
            if spec and spec.loader:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise ImportError('the compiled library of antspyx was not found')


def main(argv: list[str] | None = None) -> int:
    """Run the tool named first with the arguments that follow; return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in TOOLS:
        print(f'usage: python -m bidsharm.interfaces.antspyx {{{",".join(TOOLS)}}} ARGS...', file=sys.stderr)
        return 2
    tool, *rest = arguments
    if rest == ['--version']:
        print(f'antspyx {importlib.metadata.version("antspyx")} (no ANTs version of its own)')
        return 0
    return int(getattr(load_library(), tool)(rest) or 0)


if __name__ == '__main__':
    tether()
    sys.exit(main())
