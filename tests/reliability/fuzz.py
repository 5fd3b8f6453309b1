"""Readers of files that somebody else made, fed with files that nobody would make: hypothesis, and atheris where it is installed.

Each reader turns bytes into files and reads them as the program does. What must hold: only an error of the package comes out, or
what is documented for a file that cannot be read. ``python tests/reliability/fuzz.py READER FOLDER --runs N --seed S`` searches one
reader with atheris.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shared import Part, Row

#: Seconds after which one case counts as hung.
SLOWEST_S = 20.0
#: Methods whose bundles are searched: of the classical ones each kind, and one with networks.
BUNDLES = ('nyul', 'tscore', 'kde', 'isotone', 'unet3d', 'histogram')


@dataclass(frozen=True)
class Reader:
    """One reader.

    Parameters
    ----------
    name
        What it reads.
    read
        Makes files of bytes in a folder and reads them; raises what comes out of the package.
    seeds
        Good files to start from.
    kind
        ``json``: nested values are worth trying, too.
    quick, cases, runs
        How many cases are tried in the tests by hypothesis, and in the long run by hypothesis and by atheris.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], Sequence[bytes]]
    kind: str = ''
    quick: int = 50
    cases: int = 1500
    runs: int = 6000


# --- Readers ----------------------------------------------------------------------------------------------


def _image_seeds() -> list[bytes]:
    import nibabel as nib

    voxels = np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11)
    found = []
    for kind, dtype in (
        (nib.Nifti1Image, np.int16),
        (nib.Nifti2Image, np.float32),
        (nib.Nifti1Image, np.uint8),
    ):
        image = kind(voxels.astype(dtype), np.diag([2.0, 2, 2, 1]))
        image.header.set_xyzt_units('mm')
        found.append(image.to_bytes())
    image.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'a comment'))
    found.append(image.to_bytes())
    return found


def _read_image(data: bytes, folder: Path) -> None:
    from bidsharm.imaging import grids

    for path, content in (
        (folder / 'a.nii', data),
        (folder / 'b.nii.gz', gzip.compress(data, 1)),
        (folder / 'c.nii.gz', data),
    ):
        path.write_bytes(content)
        with contextlib.suppress(_ours()):
            found = grids.conform(path)
            assert np.isfinite(np.asarray(found.image.dataobj)).all()


def _sidecar_seeds() -> list[bytes]:
    content = {
        'Manufacturer': 'Siemens',
        'MagneticFieldStrength': 2.89,
        'StationName': 'AWP',
        'EchoTime': 1e-3,
    }
    return [
        json.dumps(content).encode(),
        b'{"MagneticFieldStrength": NaN, "a": "\\ud800"}',
        b'\xef\xbb\xbf{}',
    ]


def _read_sidecar(data: bytes, folder: Path) -> None:
    from bidsharm.bids.metadata import read_metadata
    from bidsharm.bids.names import ScanFile
    from bidsharm.bids.sites import site_by_rule

    image = folder / 'sub-01_T1w.nii.gz'
    image.with_name('sub-01_T1w.json').write_bytes(data)
    found, warnings = read_metadata(image, folder)
    assert isinstance(found, dict)
    assert len(warnings) <= 1
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode('utf-8')
    scan = ScanFile(image, {'sub': '01'}, 'T1w', folder, metadata=found)
    for rule in ('auto', ','.join([*map(str, found), 'MagneticFieldStrength'])):
        assert re.fullmatch(r'[0-9A-Za-z.-]*', site_by_rule(scan, {}, rule))


def _table_seeds() -> list[bytes]:
    return [
        b'participant_id\tsite\tage\nsub-01\tA\t20\nsub-02\tn/a\t\n',
        b'\xef\xbb\xbfsite\nA',
        b'participant_id\n"\n',
    ]


def _read_participants(data: bytes, folder: Path) -> None:
    from bidsharm.bids.names import ScanFile
    from bidsharm.bids.sites import check_participants, site_by_rule

    (folder / 'participants.tsv').write_bytes(data)
    table, warnings = check_participants(folder)
    assert len(warnings) <= 1
    scan = ScanFile(folder / 'x', {'sub': next(iter(table), '01')}, 'T1w', folder)
    columns = next(iter(table.values()), {})
    for rule in ('auto', ','.join(['site', *columns])):
        assert re.fullmatch(r'[0-9A-Za-z.-]*', site_by_rule(scan, table, rule))


def _read_scans_table(data: bytes, folder: Path) -> None:
    from bidsharm.bids.evaluation_input import _read_scans

    path = folder / 'scans.tsv'
    path.write_bytes(data)
    _read_scans(path)


def _read_name(data: bytes, folder: Path) -> None:
    from bidsharm.bids.names import OutputNames, ScanFile, parse_name

    text = data.decode('utf-8', 'surrogateescape')
    found = parse_name(text)
    if found is None or 'sub' not in found[0]:
        return
    assert all(re.fullmatch(r'[0-9A-Za-z+]+', value) for value in found[0].values()), found
    names = OutputNames(ScanFile(folder / 'x', found[0], 'T1w', folder))
    for name in (names.image('harmonized'), names.qc, names.transform('T1w', 'MNI')):
        assert '..' not in Path(name).parts
        assert not Path(name).is_absolute()


def _read_filter(data: bytes, folder: Path) -> None:
    from bidsharm.bids.query import read_filter_file

    path = folder / 'filter.json'
    path.write_bytes(data)
    read_filter_file(path)


def _read_settings(data: bytes, folder: Path) -> None:
    from bidsharm.settings import from_dict, load_values

    path = folder / 'settings.toml'
    path.write_bytes(data)
    settings = from_dict({**load_values(path), 'bids_dir': folder, 'output_dir': folder})
    settings.digest()


def _read_plugin(data: bytes, folder: Path) -> None:
    from bidsharm.workflows.engine import load_plugin

    path = folder / 'plugin.yml'
    path.write_bytes(data)
    load_plugin(path)


@cache
def _bundles() -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return card and tensors of true bundles, by method."""
    import tempfile

    from bidsharm.harmonizers import bundle, registry
    from bidsharm.harmonizers.contract import Cohort, Scan

    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing='ij'))
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.select([radius < 0.55, radius < 0.8, radius < 0.9], [3, 2, 1], 0)
    noise = np.random.default_rng(0).standard_normal(labels.shape)
    scans = [
        Scan(
            data=((labels * 300 + 20 * noise) * gain).astype(np.float32), mask=labels > 0, affine=np.eye(4), contrast='T1w',
            name=f'sub-0{number}_T1w', site='A', tissue=np.stack([labels == n for n in (1, 2, 3)]).astype(np.float32),
        )
        for number, gain in enumerate((1, 2))
    ]  # fmt: skip
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name in BUNDLES:
            method: Any = registry.get(name)()
            if name == 'unet3d':
                import torch

                method.settings = replace(method.preset(), **method.tiny)
                method.sites, method.contrasts, method.target_site = ('A', 'B'), ('T1w',), 'B'
                method.networks, method._trained = torch.nn.ModuleDict(method.build()), True
            elif method.card.needs_fit:
                method.fit(Cohort(scans))
            bundle.save(method, Path(work) / name)
            card = json.loads((Path(work) / name / bundle.CARD).read_text())
            found[name] = card, (Path(work) / name / bundle.TENSORS).read_bytes()
    return found


def _bundle_seeds() -> list[bytes]:
    seeds = []
    for index, (card, tensors) in enumerate(_bundles().values()):
        seeds.append(bytes([0, index]) + json.dumps(card).encode())
        seeds.append(bytes([1, index]) + json.dumps(card['settings']).encode())
        if len(tensors) < 20_000:
            seeds.append(bytes([2, index]) + tensors)
    return seeds


def _read_bundle(data: bytes, folder: Path) -> None:
    """Read a bundle of which the card, the settings or the tensors are the bytes; their digest is made right."""
    from bidsharm.harmonizers import bundle

    bundles = list(_bundles().values())
    mode, (card, tensors) = data[:1] or b'\0', bundles[(data[1:2] or b'\0')[0] % len(bundles)]
    text, rest = json.dumps(card), data[2:]
    if mode[0] % 3 == 1:
        try:
            text = json.dumps({**card, 'settings': json.loads(rest)})
        except (ValueError, RecursionError):
            return
    elif mode[0] % 3 == 2:
        tensors = rest
        text = json.dumps({**card, 'tensors_sha256': hashlib.sha256(rest).hexdigest()})
    (folder / bundle.CARD).write_bytes(rest if mode[0] % 3 == 0 else text.encode('utf-8', 'surrogatepass'))
    (folder / bundle.TENSORS).write_bytes(tensors)
    bundle.load(folder)


def _record_seeds() -> list[bytes]:
    side = {
        'volume_gm_ml': 600.0,
        'volume_wm_ml': 400.0,
        'p90': 0.9,
        'percentiles': list(np.linspace(0, 1, 101)),
    }
    record = {
        'subject': '01', 'session': '1', 'scan': 'sub-01_T1w', 'contrast': 'T1w', 'site': 'A', 'verdict': 'pass', 'digest': 'x',
        'harmonizer': {'name': 'nyul', 'title': 'Nyul', 'doi': '10.1/2', 'seconds': 1.0},
        'checks': [{'name': 'dice', 'value': 0.9, 'warn': 0.8, 'fail': 0.7, 'direction': 'min', 'verdict': 'pass'}],
        'measures': {'before': side, 'after': side, 'change': {'p95_abs': 0.1}},
        'histograms': {'before': {'edges': [0, 1, 2], 'density': [1, 1]}, 'after': {'edges': [0, 1, 2], 'density': [1, 1]}},
        'figures': {'mask': 'sub-01/figures/x.png'}, 'outputs': {'sub-01/anat/x.nii.gz': {'size': 1}}, 'warnings': ['a'], 'notes': {'b': 'c'},
        'methods': {'text': 'How', 'references': ['10.1/2'], 'provenance': {'bidsharm': '1'}}, 'inputs': {},
    }  # fmt: skip
    return [json.dumps(record).encode(), json.dumps({**record, 'measures': {}, 'checks': []}).encode()]


def _read_records(data: bytes, folder: Path) -> None:
    """Read a QC record, and make both pages and the table of it."""
    from bidsharm.workflows.reporting import records_of, report_group, report_subject

    from bidsharm.bids.resume import is_complete

    path = folder / 'sub-01' / 'anat' / 'sub-01_desc-T1w_qc.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    is_complete(path, folder, {}, 'x')
    records = records_of(folder)
    report_subject(folder, '01', methods={})
    if records:
        report_group(folder, records, title='A study')


def _crash_seeds() -> list[bytes]:
    return [
        b'Node: bidsharm_wf.sub_01_wf.x\n\nTraceback\n  bidsharm.errors.ScanError: x.nii: It is empty.\n',
        b'Node: a\nReturn code: -11\n', b'\n' * 50 + b'ValueError: no\n', b'Node: b\n' + b'Error' * 400 + b'!',
    ]  # fmt: skip


def _read_crash(data: bytes, folder: Path) -> None:
    from bidsharm.workflows.engine import read_failures

    (folder / 'crash-1.txt').write_bytes(data)
    (found,) = read_failures(folder)
    assert found.what


@cache
def _scanner_seeds() -> tuple[bytes, ...]:
    import tomli_w

    from bidsharm.simulation.presets import PRESETS

    content = {'scanners': [scanner.to_dict() for scanner in PRESETS[:2]]}
    cleaned = json.loads(
        json.dumps(content), object_hook=lambda part: {k: v for k, v in part.items() if v is not None}
    )
    return json.dumps(content).encode(), tomli_w.dumps(cleaned).encode()


def _read_scanners(data: bytes, folder: Path) -> None:
    from bidsharm.simulation.protocols import read_scanners

    for ending in ('json', 'toml'):
        path = folder / f'scanners.{ending}'
        path.write_bytes(data)
        with contextlib.suppress(_ours()):
            read_scanners(path)


def _checkpoint_seeds() -> list[bytes]:
    import torch

    from bidsharm.training.records import STATE

    buffer = io.BytesIO()
    torch.save(dict.fromkeys(STATE, 1.0), buffer)
    return [buffer.getvalue(), b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.']


def _read_checkpoint(data: bytes, folder: Path) -> None:
    import torch

    from bidsharm.training.records import read_checkpoint

    (folder / 'checkpoint.pt').write_bytes(data)
    with contextlib.suppress(ValueError):  # what the loop turns into an error with advice
        read_checkpoint(folder, torch.device('cpu'))


@cache
def _keras_seeds() -> tuple[bytes, ...]:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, 'w') as out:
        group = out.create_group('conv')
        group['kernel'] = np.zeros((3, 3), np.float32)
        group.attrs['weight_names'] = [b'kernel']
        out.attrs['layer_names'] = [b'conv']
    return (buffer.getvalue(),)


def _read_keras(data: bytes, folder: Path) -> None:
    """Read a file of weights, in a process of its own as the command does: the library of HDF5 can hang."""
    from bidsharm.interfaces.isolated import run_isolated

    path = folder / 'weights.h5'
    path.write_bytes(data)
    run_isolated('import-iguane', {'name': str(path), 'folder': str(folder / 'model')}, folder, limit_s=10)


def _description_seeds() -> list[bytes]:
    return [
        b'{"Name": "x", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "bidsharm"}], "DatasetType": "derivative"}'
    ]


def _read_description(data: bytes, folder: Path) -> None:
    """Read the description of a data set: before pybids does, and as the root of derivatives."""
    from bidsharm.bids.dataset import MAIN, description, refuse_foreign
    from bidsharm.bids.index import _check_description
    from bidsharm.settings import Settings

    (folder / 'dataset_description.json').write_bytes(data)
    settings = Settings(folder, folder)
    json.dumps(description(settings), allow_nan=False, ensure_ascii=False).encode('utf-8')
    with contextlib.suppress(_ours()):
        _check_description(settings)
    refuse_foreign(folder, MAIN)


def _settings_seeds() -> list[bytes]:
    from bidsharm.settings import Settings

    return [Settings(Path('/a'), Path('/b')).to_toml().encode(), b'[bidsharm]\nrun = [1, 2]\nmem_gb = nan\n']


def _plugin_seeds() -> list[bytes]:
    return [
        b'plugin: MultiProc\nplugin_args: {n_procs: 2}\n', b'plugin: SLURM\nplugin_args: {sbatch_args: "-p a"}\n',
        b'plugin: !!python/object/apply:os.system ["true"]\n', b'a: &a [x, x]\nb: &b [*a, *a]\nplugin: *b\n',
    ]  # fmt: skip


def _filter_seeds() -> list[bytes]:
    return [b'{"t1w": {"run": 1, "session": ["a", "Query.NONE"]}, "T2w": {"acquisition": "Query.ANY"}}']


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader('image', _read_image, _image_seeds, quick=40, cases=1000, runs=1500),
        Reader('sidecar', _read_sidecar, _sidecar_seeds, 'json'),
        Reader('participants.tsv', _read_participants, _table_seeds),
        Reader(
            'table of scans',
            _read_scans_table,
            lambda: [b'participant_id\tscanner\tsession_id\nsub-01\tA\tses-1\n'],
        ),
        Reader(
            'name',
            _read_name,
            lambda: [b'sub-01_ses-a_acq-x_T1w.nii.gz', b'sub-01_sub-02_T1w', b'sub-../x_T1w.json'],
            runs=100_000,
        ),
        Reader('filter file', _read_filter, _filter_seeds, 'json'),
        Reader('settings file', _read_settings, _settings_seeds),
        Reader('plugin file', _read_plugin, _plugin_seeds, cases=700, runs=2500),
        Reader('data set description', _read_description, _description_seeds, 'json'),
        Reader('bundle', _read_bundle, _bundle_seeds, quick=20, cases=500, runs=1000),
        Reader('qc record', _read_records, _record_seeds, 'json', quick=25, cases=500, runs=1000),
        Reader('crash file', _read_crash, _crash_seeds),
        Reader('scanner file', _read_scanners, _scanner_seeds, 'json', cases=1000, runs=2000),
        Reader('training checkpoint', _read_checkpoint, _checkpoint_seeds, cases=1000, runs=2000),
        Reader('keras weights', _read_keras, _keras_seeds, quick=0, cases=20, runs=0),
    )
}


def _ours() -> type[Exception]:
    from bidsharm.errors import BidsharmError

    return BidsharmError


def feed(reader: Reader, data: bytes, folder: Path) -> None:
    """Read one case; an error of the package is what may come out."""
    with contextlib.suppress(_ours()):
        reader.read(data, folder)


# --- hypothesis -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    cases
        How many were tried.
    slowest
        Seconds that the slowest kept the processor busy.
    error
        What came out that must not, with its end; empty if nothing did.
    """

    cases: int
    slowest: float
    error: str = ''


def strategy(reader: Reader) -> Any:
    """Return what hypothesis draws for a reader: good files with changes, bytes, and nested values where they are JSON."""
    from hypothesis import strategies as st

    seeds = list(reader.seeds())
    pieces = st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b'\0' * 4, b'\xff' * 8, b'[' * 3000, b'{"a":' * 3000, b'9' * 6000, b'NaN', b'-Infinity', b'1e999', b'"\\ud800"',
                         b'../../etc/passwd', b'<script>', b'null', b'[]', b'{}', b'true', b'\t', b'\n', b'\r', b'"', b'\xef\xbb\xbf',
                         struct.pack('<i', -1), struct.pack('<f', float('nan')), struct.pack('<q', 2**62)]),
    )  # fmt: skip
    edit = st.tuples(st.floats(0, 1), st.integers(0, 40), pieces)
    edited = st.builds(_edited, st.sampled_from(seeds), st.lists(edit, max_size=6))
    drawn = [edited, edited, st.binary(max_size=400)]
    if reader.kind == 'json':
        drawn.append(
            st.builds(
                _exchanged,
                st.sampled_from(seeds),
                st.lists(st.tuples(st.integers(0, 200), _values()), max_size=5),
            )
        )
    return st.one_of(drawn)


def _values() -> Any:
    from hypothesis import strategies as st

    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just('\ud800'), st.just(10**400), st.just(1e308),
        st.sampled_from(['../../x', '<img src=x onerror=alert(1)>', 'nan', '-1', 'Query.NONE', 'pass', 'T1w']),
    )  # fmt: skip
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )


def _edited(seed: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    for share, removed, added in edits:
        place = int(share * len(seed))
        seed = seed[:place] + added + seed[place + removed :]
    return seed


def _exchanged(seed: bytes, changes: Sequence[tuple[int, Any]]) -> bytes:
    """Exchange values somewhere inside a JSON file by others."""
    try:
        content = json.loads(seed)
    except ValueError:
        content = {}
    for number, value in changes:
        places = list(_places(content))
        if not places:
            return json.dumps(value).encode('utf-8', 'surrogatepass')
        holder, key = places[number % len(places)]
        holder[key] = value
    return json.dumps(content, ensure_ascii=False).encode('utf-8', 'surrogatepass')


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in list(items):
        yield content, key
        if not (isinstance(value, list) and len(value) > 20):
            yield from _places(value)


def search(reader: Reader, folder: Path, cases: int, seed: int = 0) -> Found:
    """Search a reader with hypothesis for a number of cases."""
    import hypothesis

    tried, slowest = 0, 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy(reader))
    def one(data: bytes) -> None:
        nonlocal tried, slowest
        tried, started = tried + 1, time.process_time()
        feed(reader, data, folder)
        slowest = max(slowest, time.process_time() - started)

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Exception):  # imports are no part of a case
        reader.read(b'', folder)
    try:
        for data in reader.seeds():
            one.hypothesis.inner_test(data)  # type: ignore[attr-defined]
        one()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        error.__notes__ = []  # hypothesis adds the case, which may be a large file
        return Found(tried, slowest, ''.join(traceback.format_exception(error))[-1500:])
    return Found(tried, slowest)


# --- atheris ----------------------------------------------------------------------------------------------


def has_atheris() -> bool:
    """Say whether atheris is installed here."""
    import importlib.util

    return importlib.util.find_spec('atheris') is not None


def search_by_coverage(reader: Reader, folder: Path, runs: int, seed: int) -> Found:
    """Search a reader with atheris, in a process of its own."""
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, reader.name, str(folder), '--runs', str(runs), '--seed', str(seed)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors='replace', timeout=1800, check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'}
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Found(0, 1800.0, 'it did not end')
    said = done.stdout + done.stderr
    ended = re.search(r'Done (\d+) runs? in (\d+) second', said)
    slow = [int(text) for text in re.findall(r'Slowest unit: (\d+) s', said)]
    if done.returncode == 0 and ended:
        return Found(int(ended[1]), float(max(slow, default=0)))
    return Found(int(ended[1]) if ended else 0, 0.0, f'exit code {done.returncode}: {said[-1500:]}')


def main(arguments: list[str] | None = None) -> None:
    """Search one reader with atheris."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('reader', choices=list(READERS))
    parser.add_argument('folder', type=Path)
    parser.add_argument('--runs', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(arguments)
    import logging

    import atheris

    logging.disable(logging.CRITICAL)
    reader, corpus, files = READERS[args.reader], args.folder / 'corpus', args.folder / 'files'
    for folder in (corpus, files):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(reader.seeds()):
        (corpus / f'seed-{number}').write_bytes(data)
    with atheris.instrument_imports(include=['bidsharm', 'yaml', 'tomllib', 'csv', 'json']):
        for module in ('bids.query', 'bids.sites', 'bids.evaluation_input', 'workflows.engine', 'workflows.reporting', 'imaging.grids',
                       'harmonizers.bundle', 'simulation.protocols', 'settings', 'training.records', 'harmonizers.iguane_import'):  # fmt: skip
            __import__(f'bidsharm.{module}')

    def one(data: bytes) -> None:
        feed(reader, data, files)

    options = [f'-runs={args.runs}', f'-seed={args.seed + 1}', f'-timeout={SLOWEST_S:.0f}', '-max_len=20000', '-rss_limit_mb=4096',
               f'-artifact_prefix={args.folder}/']  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


# --- The part ---------------------------------------------------------------------------------------------


def run(part: Part) -> None:
    """Search every reader."""
    for number, reader in enumerate(READERS.values()):
        found = search(reader, part.work / f'h{number}', reader.cases, part.seed)
        _tell(part, reader, 'hypothesis', found)
    if not has_atheris():
        part.skip('fuzzing by coverage: atheris is not installed (pip install "bidsharm[fuzz]")')
        return
    for number, reader in enumerate(READERS.values()):
        if not reader.runs:
            part.skip(f'fuzzing by coverage of {reader.name}: each case needs a process of its own')
            continue
        found = search_by_coverage(reader, part.work / f'a{number}', reader.runs, part.seed)
        _tell(part, reader, 'atheris', found)


def _time(found: Found, by: str) -> str:
    if by == 'atheris' and not found.slowest:
        return 'no case took 10 s'  # it names slower ones only
    return f'slowest case {found.slowest:.1f} s'


def _tell(part: Part, reader: Reader, by: str, found: Found) -> None:
    good = not found.error and found.cases > 0 and found.slowest < SLOWEST_S
    part.add(
        Row(
            'fuzz', f'{reader.name}, by {by}', 'only errors of the package' if good else 'something else came out',
            f'{_time(found, by)}. {found.error}'.strip(), ok=good, count=found.cases,
        )
    )  # fmt: skip


if __name__ == '__main__':
    main()
