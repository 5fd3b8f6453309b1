"""Questions that are asked in a process of its own: a library that crashes or hangs there ends only the question.

``python -m bidsharm.workflows.doctor.probe QUESTION ARGUMENTS...`` is the other side; the last line it prints is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bidsharm.errors import BidsharmError

#: Modules that every run imports.
LIBRARIES = (
    'numpy', 'scipy', 'nibabel', 'nipype', 'nipype.interfaces.ants', 'pandas', 'bids', 'skimage', 'matplotlib', 'safetensors',
    'deepbet', 'statsmodels', 'sklearn', 'psutil', 'jinja2', 'rich',
)  # fmt: skip


class Unanswered(Exception):
    """The process crashed, took too long, or said nothing that can be understood; the message says which."""


def ask(question: str, *arguments: str, limit_s: float) -> dict[str, Any]:
    """Ask one of :data:`QUESTIONS` in a new process.

    Parameters
    ----------
    question
        Key of :data:`QUESTIONS`.
    arguments
        Of the question.
    limit_s
        Seconds after which the process is stopped.

    Raises
    ------
    BidsharmError
        The error that the question ended with.
    Unanswered
        If there is no answer.
    """
    from bidsharm.interfaces.isolated import end_of

    command = [sys.executable, '-m', 'bidsharm.workflows.doctor.probe', question, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors='replace', timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unanswered(f'took more than {limit_s:g} s and was stopped') from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
        raise Unanswered(f'{end_of(done.returncode)}: {last[:300]}') from None
    if 'error' in answer:
        raise BidsharmError(
            answer['error']['what'], where=answer['error']['where'], fix=answer['error']['fix']
        )
    return dict(answer)


def _torch() -> dict[str, Any]:
    """Return what torch sees, and how a small multiplication went on every device."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        'version': torch.__version__,
        'cuda': torch.version.cuda,
        'hip': torch.version.hip,
        'told': [str(item.message).splitlines()[0] for item in told],
        'cpu': _multiply('cpu'),
        'cards': [_card(number) for number in range(cards)],
        'mps': _multiply('mps') if torch.backends.mps.is_available() else None,
    }


def _card(number: int) -> dict[str, Any]:
    import torch

    known: dict[str, Any] = {'device': f'cuda:{number}', 'name': '?', 'memory_gb': 0.0, 'free_gb': 0.0}
    try:
        properties = torch.cuda.get_device_properties(number)
        known |= {'name': properties.name, 'memory_gb': round(properties.total_memory / 1e9, 1)}
        known['free_gb'] = round(torch.cuda.mem_get_info(number)[0] / 1e9, 1)
    except (RuntimeError, AssertionError) as error:
        return {**known, 'error': _first_line(error)}
    return {**known, 'error': _multiply(f'cuda:{number}')}


def _multiply(device: str) -> str:
    """Return what went wrong in a small multiplication on a device; nothing if it was right."""
    import torch

    try:
        made = torch.full((32, 32), 2.0, device=device)
        result = float((made @ made).sum().cpu())
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return '' if result == 4.0 * 32**3 else f'2 x 2 summed up to {result:g}, not {4 * 32**3}'


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _libraries() -> dict[str, Any]:
    """Return what keeps each of the libraries from being imported; nothing for those that can be."""
    import importlib

    broken = {}
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - libraries that do not fit together raise anything
            broken[name] = f'{type(error).__name__}: {_first_line(error)}'
    return {'broken': broken}


def _ants() -> dict[str, Any]:
    """Return the version of ANTs, after loading antspyx's library where ANTs is not installed."""
    from bidsharm.interfaces.ants import ants_version, has_real_ants
    from bidsharm.interfaces.antspyx import TOOLS, load_library

    if not has_real_ants():
        library = load_library()
        missing = [tool for tool in TOOLS if not hasattr(library, tool)]
        if missing:
            raise ImportError(f'antspyx has no {", ".join(missing)}')
    return {'version': ants_version()}


def _brain_extraction() -> dict[str, Any]:
    """Load the networks of deepbet."""
    from deepbet import BrainExtraction

    networks = BrainExtraction(no_gpu=True)
    return {'parameters': sum(item.numel() for item in networks.model.parameters())}


def _bundle(folder: str, name: str = '') -> dict[str, Any]:
    """Load a model bundle."""
    from bidsharm.harmonizers import bundle

    loaded = bundle.load(Path(folder), name=name or None)
    return {'method': loaded.card.name, 'digest': bundle.digest(Path(folder))}


def _harmonizer(name: str) -> dict[str, Any]:
    """Load a method for images."""
    from bidsharm.harmonizers import registry

    card = registry.get(name).card
    return {'needs': list(card.needs_apply), 'memory_gb': card.memory_gb, 'uses_device': card.uses_device}


def _method(name: str) -> dict[str, Any]:
    """Load a method of any kind."""
    from bidsharm.harmonizers import registry

    return {'place': registry.card(name).place}


def _harmonizers() -> dict[str, Any]:
    """Load the methods that come with bidsharm."""
    from bidsharm.harmonizers import registry

    broken = {}
    for name in registry._BUILTIN:
        try:
            registry.find(name)
        except BidsharmError as error:
            broken[name] = error.what
    return {'count': len(registry._BUILTIN), 'broken': broken}


def _workers() -> dict[str, Any]:
    """Start processes as Nipype does."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context('forkserver')) as pool:
        return {'sum': sum(pool.map(abs, (-1, -2)))}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    'torch': _torch,
    'libraries': _libraries,
    'ants': _ants,
    'brain-extraction': _brain_extraction,
    'bundle': _bundle,
    'harmonizer': _harmonizer,
    'method': _method,
    'harmonizers': _harmonizers,
    'workers': _workers,
}


def main(argv: list[str] | None = None) -> int:
    """Answer one question."""
    question, *arguments = sys.argv[1:] if argv is None else argv
    try:
        answer = QUESTIONS[question](*arguments)
    except BidsharmError as error:
        answer = {'error': {'what': error.what, 'where': error.where, 'fix': error.fix}}
    print(json.dumps(answer))
    return 0


if __name__ == '__main__':
    sys.exit(main())
