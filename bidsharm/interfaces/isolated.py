"""Run a step in a process of its own: memory and GPU return when it ends, a crash stays there, and it cannot hang.

``python -m bidsharm.interfaces.isolated STEP REQUEST RESPONSE`` is the other side; request and response are JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bidsharm.errors
from bidsharm.errors import BidsharmError, ScanError
from bidsharm.processes import as_parent, tether

#: Longest time one external step may take (seconds) before it counts as hung.
STEP_LIMIT_S = int(os.environ.get('BIDSHARM_STEP_LIMIT_S', '7200'))


def run_isolated(
    step: str, request: Mapping[str, Any], folder: Path, *, threads: int = 1, limit_s: int = STEP_LIMIT_S
) -> dict[str, Any]:
    """Run one of :data:`STEPS` in a new process and return its answer.

    Parameters
    ----------
    step
        Key of :data:`STEPS`.
    request
        JSON-safe arguments.
    folder
        Where request, response and log are written.
    threads
        Upper limit for the libraries' thread pools.
    limit_s
        Seconds after which the process is stopped.

    Raises
    ------
    BidsharmError
        The error of the step, or a :class:`ScanError` when the process crashed or took too long.
    """
    ask, answer, log = (
        folder / f'{step}-request.json',
        folder / f'{step}-response.json',
        folder / f'{step}.log',
    )
    ask.write_text(json.dumps(dict(request)))
    answer.unlink(missing_ok=True)
    count = str(max(threads, 1))
    limits = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), count)
    command = [sys.executable, '-m', 'bidsharm.interfaces.isolated', step, str(ask), str(answer)]
    where = str(request.get('name', ''))
    with log.open('w') as output:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **limits, **as_parent()}, timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ScanError(
                f'The step "{step}" took more than {limit_s} s and was stopped.', where=where
            ) from None
    if not answer.exists():
        raise ScanError(f'The step "{step}" {end_of(done.returncode)}.{_tail(log)}', where=where)
    response = json.loads(answer.read_text())
    if 'error' in response:
        error = response['error']
        kind = getattr(bidsharm.errors, error['kind'], ScanError)
        raise kind(error['what'], where=error['where'], fix=error['fix'])
    return dict(response['result'])


def end_of(code: int) -> str:
    """Return how a process ended, in words; ``code`` is negative where a signal ended it."""
    if code >= 0:
        return f'ended with code {code}'
    known = {int(item): item.name for item in signal.Signals}
    name = known.get(-code, f'signal {-code}')  # real-time signals have no name
    hint = ', probably because memory ran out' if name == 'SIGKILL' else ''
    return f'was ended by {name}{hint}'


def _tail(log: Path, lines: int = 6) -> str:
    text = log.read_text(errors='replace').strip().splitlines()[-lines:]
    return (' Its last words: ' + ' | '.join(text)) if text else ''


def _deepbet(request: dict[str, Any]) -> dict[str, Any]:
    from bidsharm.harmonizers.execution import device_lock
    from bidsharm.imaging.extraction import deepbet_mask

    device = request['device'] if request['device'].startswith('cuda') else 'cpu'  # deepbet knows these two
    with device_lock(device):
        return deepbet_mask(Path(request['in_file']), Path(request['out_file']), device=device)


def _harmonize(request: dict[str, Any]) -> dict[str, Any]:
    from bidsharm.interfaces.harmonize import harmonize_files

    _check_device(request)
    return harmonize_files(request)


def _fit(request: dict[str, Any]) -> dict[str, Any]:
    from bidsharm.interfaces.harmonize import fit_files

    _check_device(request)
    return fit_files(request)


def _import_iguane(request: dict[str, Any]) -> dict[str, Any]:
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.iguane_import import import_generator, read_keras

    file = Path(request['name'])
    return {'digest': bundle.save(import_generator(read_keras(file), str(file)), Path(request['folder']))}


def _check_device(request: dict[str, Any]) -> None:
    """Look for the device here: a job of a cluster may run on another machine than the one that planned it."""
    from bidsharm.harmonizers.execution import resolve_device

    resolve_device(request.get('execution', {}).get('device', 'cpu') or 'cpu')


STEPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    'deepbet': _deepbet,
    'harmonize': _harmonize,
    'fit': _fit,
    'import-iguane': _import_iguane,
}


def main(argv: list[str] | None = None) -> int:
    """Answer one request."""
    step, ask, answer = sys.argv[1:] if argv is None else argv
    request = json.loads(Path(ask).read_text())
    try:
        response: dict[str, Any] = {'result': STEPS[step](request)}
    except BidsharmError as error:
        response = {
            'error': {
                'kind': type(error).__name__,
                'what': error.what,
                'where': error.where,
                'fix': error.fix,
            }
        }
    partial = Path(f'{answer}.part')
    partial.write_text(json.dumps(response))
    partial.replace(answer)
    return 0


if __name__ == '__main__':
    tether()
    sys.exit(main())
