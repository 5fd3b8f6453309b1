"""The settings of one run: frozen, typed, passed explicitly, and written beside the results as TOML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bidsharm.errors import UsageError
from bidsharm.files import parse_toml, read_text

#: Contrasts that bidsharm handles, in the order in which a scan may stand in for a missing T1w.
CONTRASTS = ('T1w', 'T2w', 'FLAIR', 'PDw')

#: The harmonizer used unless ``--harmonizer`` says otherwise; why this one: ``docs/choosing.md``.
DEFAULT_HARMONIZER = 'tscore'

#: What ``--site`` may be, as a sentence.
SITE_RULES = 'Give auto, session, a column of participants.tsv, or sidecar fields separated by commas.'

#: Largest ``--random-seed``: ANTs is given one more as a signed 32-bit number, and takes 0 for "from the clock".
MAX_SEED = 2**31 - 2

#: How a target begins that is a sidecar of acquisition parameters.
ACQUISITION = 'acquisition:'

#: Fields that change what a scan looks like afterwards; all others only change how the work is done. Of ``derivatives`` each scan records the
#: files that it used, so a mask that is given for one person costs nobody else.
RESULT_FIELDS = (
    'harmonizer', 'target', 'model', 'target_scans', 'skull_strip', 'brain_extraction', 'registration',
    'output_spaces', 'random_seed', 'sloppy', 'qc_thresholds', 'site', 'oom_fallback', 'guard',
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on.

    Parameters mirror the options of the command line (``bidsharm --help``); paths are absolute.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: Literal['participant', 'group'] = 'participant'
    # which scans
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = CONTRASTS
    bids_filter_file: Path | None = None
    derivatives: dict[str, Path] = field(default_factory=dict)
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    follow_links: bool = False
    # how
    harmonizer: str = DEFAULT_HARMONIZER
    target: str = 'canonical'
    target_scans: int = 10
    site: str = 'auto'
    model: Path | None = None
    weights_dir: Path | None = None
    skull_strip: Literal['auto', 'force', 'skip'] = 'auto'
    brain_extraction: Literal['deepbet', 'ants'] = 'deepbet'
    registration: Literal['affine', 'syn'] = 'affine'
    output_spaces: tuple[str, ...] = ('native',)
    fmriprep_derivatives: Path | None = None
    random_seed: int = 0
    sloppy: bool = False
    qc_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    # where and with what
    work_dir: Path | None = None
    clean_workdir: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 8.0
    use_plugin: Path | None = None
    device: str = 'auto'
    oom_fallback: Literal['fail', 'cpu'] = 'fail'
    guard: Literal['report', 'blend', 'refuse'] = 'blend'
    table_harmonizer: str = 'none'
    table_keep: str = ''
    offline: bool = False
    # what to do
    reports_only: bool = False
    boilerplate_only: bool = False
    dry_run: bool = False
    force: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    write_graph: bool = False
    notrack: bool = True
    verbose: int = 0
    log_json: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain TOML types; fields that are None are left out."""
        return {key: _plain(value) for key, value in vars(self).items() if value is not None}

    def to_toml(self) -> str:
        """Return the settings as TOML; :func:`load` gives equal settings back."""
        import tomli_w

        return tomli_w.dumps({'bidsharm': self.to_dict()})

    def digest(self, **more: object) -> str:
        """Return a short digest over everything that decides how a harmonized scan looks.

        Parameters
        ----------
        more
            Further things the result depends on, such as the model's digest.
        """
        chosen = {name: _plain(getattr(self, name)) for name in RESULT_FIELDS}
        text = json.dumps({**chosen, **{key: str(value) for key, value in more.items()}}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def from_dict(values: Mapping[str, Any], *, where: str = 'settings') -> Settings:
    """Build settings from plain values.

    Raises
    ------
    UsageError
        If a key is unknown or a value has the wrong type.
    """
    known = {item.name: str(item.type) for item in dataclasses.fields(Settings)}
    check_keys(values, tuple(known), where=where)
    converted = {key: _convert(known[key], key, value, where) for key, value in values.items()}
    for name in converted.get('contrasts', ()):
        if name not in CONTRASTS:
            raise UsageError(
                f'"{name}" is no contrast.', where=where, fix=f'Choose from {", ".join(CONTRASTS)}.'
            )
    for key in ('nprocs', 'omp_nthreads', 'mem_gb', 'target_scans'):
        # "not >" refuses NaN too
        if key in converted and not converted[key] > 0:
            raise UsageError(f'"{key}" must be above 0, not {converted[key]}.', where=where)
    if not 0 <= converted.get('random_seed', 0) <= MAX_SEED:
        raise UsageError(
            f'"random_seed" must lie between 0 and {MAX_SEED}, not {converted["random_seed"]}.', where=where
        )
    if is_empty_rule(converted.get('site', 'auto')):
        raise UsageError('"site" names nothing.', where=where, fix=SITE_RULES)
    return Settings(**converted)


def is_empty_rule(rule: str) -> bool:
    """Say whether a rule of ``--site`` names nothing at all."""
    return not rule.replace(',', ' ').strip()


def reason(error: Exception) -> str:
    """Return why a file cannot be read, in words: without the number and the path that Python adds."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def load_values(path: Path) -> dict[str, Any]:
    """Read the ``[bidsharm]`` table of a TOML file as plain values.

    Raises
    ------
    UsageError
        If the file is missing, is not TOML, or holds unknown keys.
    """
    try:
        table = parse_toml(read_text(path))
    except FileNotFoundError:
        raise UsageError('The settings file does not exist.', where=str(path)) from None
    except (ValueError, OSError) as error:
        raise UsageError(f'The settings file cannot be read: {reason(error)}.', where=str(path)) from None
    values = table.get('bidsharm', table)
    if not isinstance(values, Mapping):
        raise UsageError('"bidsharm" must be a table: [bidsharm].', where=str(path))
    check_keys(values, tuple(item.name for item in dataclasses.fields(Settings)), where=str(path))
    return dict(values)


def check_keys(values: Mapping[str, Any], known: tuple[str, ...], *, where: str) -> None:
    """Refuse keys that are not known, naming the nearest one."""
    import difflib

    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'Did you mean "{near[0]}"?' if near else f'Known keys: {", ".join(known)}.'
            raise UsageError(f'Unknown key "{key}".', where=where, fix=hint)


def _convert(kind: str, key: str, value: Any, where: str) -> Any:
    """Turn a TOML value into the type of the field; a wrong type is the user's error, not a crash later."""
    wrong = UsageError(f'The value of "{key}" has the wrong type: {value!r}.', where=where)
    if kind.startswith('tuple'):
        if not isinstance(value, (list, tuple)) or not all(_is_label(item) for item in value):
            raise wrong
        return tuple(str(item) for item in value)
    if kind.startswith('dict'):
        fits = _is_path if 'Path' in kind else _is_numbers
        if not isinstance(value, Mapping) or not all(fits(item) for item in value.values()):
            raise wrong
        return {k: Path(v) for k, v in value.items()} if 'Path' in kind else dict(value)
    if kind.startswith('Path'):
        if not _is_path(value):
            raise wrong
        return Path(value)
    kinds: dict[str, tuple[type, ...]] = {'bool': (bool,), 'int': (int,), 'float': (int, float)}
    plain = kinds.get(kind, (str,))
    if not isinstance(value, plain) or (kind in ('int', 'float') and isinstance(value, bool)):
        raise wrong
    if kind.startswith('Literal') and repr(value) not in kind:
        raise UsageError(f'"{key}" cannot be {value!r}.', where=where, fix=f'Choose one of {kind[8:-1]}.')
    return float(str(value)) if kind == 'float' else value


def _is_label(value: Any) -> bool:
    """Labels are text; TOML also lets ``run = [1, 2]`` be written without quotes."""
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, Path))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) for item in value.values()
    )
