"""Weights, methods of other packages, and templates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from bidsharm.workflows.doctor.probe import Unanswered, ask

import bidsharm
from bidsharm.errors import BidsharmError, ConfigurationError

GROUP, TEMPLATES = 'Methods and weights', 'Templates'
#: Bundles of ``--weights-dir`` that are looked at; a folder may hold hundreds.
MOST_BUNDLES = 8


def harmonizer(asked: Asked) -> Iterator[Finding]:
    """Load the method that is asked for."""
    try:
        found = ask('harmonizer', asked.harmonizer, limit_s=20)
    except Unanswered as error:
        yield problem(f'Loading {asked.harmonizer} {error}.', 'Choose another --harmonizer.')
        return
    if 'weights' in found['needs'] and asked.model is None:
        yield problem(
            f'{asked.harmonizer} needs a model, and none is given.',
            f'Train one (bidsharm-train {asked.harmonizer} DERIVATIVES OUT) and give it with --model OUT/model.',
        )
    else:
        yield ok(f'{asked.harmonizer} can be loaded.')


def builtin(asked: Asked) -> Iterator[Finding]:
    """Load the methods that come along, and check their weights."""
    try:
        found = ask('harmonizers', limit_s=40)
    except Unanswered as error:
        yield problem(f'Loading the methods {error}.', 'Install bidsharm again.')
        return
    for name, why in found['broken'].items():
        yield problem(f'{name} cannot be loaded: {why}', 'Install bidsharm again.')
    if not found['broken']:
        yield ok(f'All {found["count"]} methods can be loaded.')


def weights(asked: Asked, folder: Path = Path(bidsharm.__file__).parent / 'weights') -> Iterator[Finding]:
    """Check the weights that come along."""
    bundles = sorted(file.parent for file in folder.glob('*/*/card.json'))
    if not bundles:
        yield problem('The weights that come with bidsharm are not there.', 'Install bidsharm again.')
    for place in bundles:
        yield _bundle(place, place.relative_to(folder).as_posix(), fix='Install bidsharm again.')


def brain_extraction(asked: Asked) -> Iterator[Finding]:
    """Load the networks of deepbet."""
    try:
        ask('brain-extraction', limit_s=40)
    except Unanswered as error:
        yield problem(f'Loading the networks of deepbet {error}.',
                      'Install it again (pip install --force-reinstall --no-deps -c constraints.txt deepbet), or choose --brain-extraction ants.')  # fmt: skip
    else:
        yield ok('The networks of brain extraction (deepbet) can be loaded.')


def given_bundles(asked: Asked) -> Iterator[Finding]:
    """Check ``--model`` and the bundles in ``--weights-dir``."""
    if asked.model is None and asked.weights_dir is None:
        yield ok('No --model and no --weights-dir are given.')
    if asked.model is not None:
        yield _given_model(asked, asked.model)
    if asked.weights_dir is None:
        return
    if not asked.weights_dir.is_dir():
        yield problem(f'There is no folder {asked.weights_dir}.', 'Correct --weights-dir.')
        return
    bundles = sorted(file.parent for file in asked.weights_dir.glob('*/card.json'))
    if not bundles:
        yield warning(
            f'There is no bundle in {asked.weights_dir}.',
            'A bundle is a folder with card.json and model.safetensors in it.',
        )
    for place in bundles[:MOST_BUNDLES]:
        yield _bundle(place, place.name)
    if len(bundles) > MOST_BUNDLES:
        yield ok(
            f'{len(bundles) - MOST_BUNDLES} more bundles were not looked at; bidsharm-models check FOLDER does it.'
        )


def _given_model(asked: Asked, model: Path) -> Finding:
    places = [model.absolute(), *([asked.weights_dir / model.name] if asked.weights_dir else [])]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        return problem(f'There is no model {model}.', 'Give its folder with --model, or --weights-dir.')
    return _bundle(place, str(model), asked.harmonizer)


def _bundle(place: Path, label: str, name: str = '', *, fix: str = '') -> Finding:
    """Load one bundle."""
    try:
        found = ask('bundle', str(place), name, limit_s=40)
    except Unanswered as error:
        return problem(f'Loading the bundle {label} {error}.', fix or 'Copy it again from its source.')
    except BidsharmError as error:
        return problem(f'{label}: {error.what}', fix or error.fix)
    return ok(f'The bundle {label} is whole ({found["method"]}, {found["digest"][:12]}).', **found)


def plugins(asked: Asked) -> Iterator[Finding]:
    """Load the methods that other packages add."""
    from bidsharm.harmonizers import registry

    points = registry.available()
    others = [name for name in points if name not in registry._BUILTIN]
    taken = [
        point.name for point in entry_points(group=registry.GROUP)
        if point.name in points and points[point.name].value != point.value
    ]  # fmt: skip
    for name in taken:
        yield warning(
            f'A second harmonizer "{name}" is ignored: the name is taken.',
            'Remove the package that offers it.',
        )
    for name in others:
        try:
            ask('method', name, limit_s=20)
        except Unanswered as error:
            yield problem(
                f'Loading the harmonizer "{name}" of another package {error}.',
                'Repair or remove that package.',
            )
        except BidsharmError as error:
            yield problem(error.what, error.fix)
        else:
            yield ok(f'The harmonizer "{name}" of another package can be loaded.')
    if not others and not taken:
        yield ok('No other package adds harmonizers.')


def bundled_template(asked: Asked) -> Iterator[Finding]:
    """Load the template that is always at hand."""
    from bidsharm.imaging.templates import BUNDLED, bundled_files, tissue_priors

    missing = [path.name for path in bundled_files().values() if not path.is_file()]
    if missing:
        yield problem(f'Of the template {BUNDLED} {", ".join(missing)} is missing.', 'Install nilearn again.')
        return
    try:
        brain, priors = tissue_priors()
        whole = brain.shape == priors.shape[:3] and float(brain.get_fdata().max()) > 0
    except Exception as error:  # noqa: BLE001 - whatever a broken file raises
        yield problem(f'The template {BUNDLED} cannot be read ({error}).', 'Install nilearn again.')
        return
    if whole:
        yield ok(f'The template {BUNDLED} is there.')
    else:
        yield problem(f'The template {BUNDLED} is empty.', 'Install nilearn again.')


def given_templates(asked: Asked) -> Iterator[Finding]:
    """Look for the templates of ``--output-spaces`` on disk; the network is never asked."""
    from bidsharm.imaging.templates import BUNDLED, find_template, parse_space, templateflow_home

    home = templateflow_home()
    named = os.environ.get('TEMPLATEFLOW_HOME') or os.environ.get('XDG_CACHE_HOME')
    lent = not named and asked.home != os.environ.get('HOME')
    writable = _can_write(home) and not lent
    if lent:
        yield ok(
            'There is no home folder to write to, so templates that a run fetches go away with it; TEMPLATEFLOW_HOME can name a folder.'
        )
    else:
        yield ok(
            f'TemplateFlow looks in {home}, which {"is there" if home.is_dir() else "is not there yet"} and '
            f'{"can be written" if writable else "cannot be written"}.',
            home=str(home), exists=home.is_dir(), writable=writable,
        )  # fmt: skip
    for text in asked.output_spaces:
        space = parse_space(text)
        if space.name in ('native', 'T1w'):
            continue
        try:
            find_template(space, offline=True)
        except ConfigurationError as error:
            absent = 'is not in' in error.what
            if absent and writable and space.name != BUNDLED:
                yield warning(f'{error.what} The first run would have to fetch it.', error.fix)
            else:
                yield problem(error.what if absent else f'{error.where}: {error.what}', error.fix)
        else:
            yield ok(f'The template of {text} is there.')


def _can_write(folder: Path) -> bool:
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path('/'))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


CHECKS = (
    Check(GROUP, 'methods', builtin, limit_s=50),
    Check(GROUP, 'harmonizer', harmonizer, limit_s=30),
    Check(GROUP, 'built-in weights', weights, limit_s=90),
    Check(GROUP, 'brain extraction', brain_extraction, limit_s=50),
    Check(GROUP, 'given weights', given_bundles, limit_s=120),
    Check(GROUP, 'other packages', plugins, limit_s=60),
    Check(TEMPLATES, 'built-in template', bundled_template, limit_s=30),
    Check(TEMPLATES, 'TemplateFlow', given_templates, limit_s=30),
)
