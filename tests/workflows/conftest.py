"""Scans, settings and a clean Nipype for the tests of the graphs and of what surrounds them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows.harmonize import Method
from nipype import config
from nipype import logging as nipype_logging

from bidsharm.bids.names import ScanFile, parse_name
from bidsharm.harmonizers import registry
from bidsharm.settings import Settings, from_dict

#: Packages of somebody else, with methods.
PLUGINS = Path(__file__).parents[1] / 'harmonizers' / 'plugin'


def scan_at(root: Path, name: str, *, site: str = 'A', content: bytes | None = b'') -> ScanFile:
    """Return a raw scan by its name without extension; its file holds ``content`` (None: there is no file)."""
    parsed = parse_name(name)
    assert parsed is not None
    entities, suffix = parsed
    session = f'ses-{entities["ses"]}' if 'ses' in entities else ''
    path = root / f'sub-{entities["sub"]}' / session / 'anat' / f'{name}.nii.gz'
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ScanFile(path, entities, suffix, root, site=site)


def data_set(root: Path, sites: dict[str, str], contrasts: tuple[str, ...] = ('T1w',)) -> Path:
    """Write a data set of tiny images: the site of every subject stands in participants.tsv."""
    for subject in sites:
        for contrast in contrasts:
            path = root / f'sub-{subject}' / 'anat' / f'sub-{subject}_{contrast}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)).to_filename(path)
    rows = ''.join(f'sub-{subject}\t{site}\n' for subject, site in sites.items())
    (root / 'participants.tsv').write_text(f'participant_id\tsite\n{rows}')
    (root / 'dataset_description.json').write_text('{"Name": "tiny", "BIDSVersion": "1.10.0"}')
    return root


def method_of(name: str = 'robust', device: str = 'cpu', **more: Any) -> Method:
    """Return a harmonizer as a plan holds it."""
    card = registry.get(name).card
    execution = {'device': device, 'seed': 0, 'oom_fallback': 'fail'}
    return Method(name=name, card=card.to_dict(), execution=execution, memory_gb=card.memory_gb, **more)


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a package with a method visible here and in the processes that the steps run in, as an installed one would be."""

    def install(name: str, kind: str) -> None:
        site = tmp_path / 'site-packages'
        info = site / f'{name}-1.0.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (info / 'entry_points.txt').write_text(f'[{registry.GROUP}]\n{name} = {name}:{kind}\n')
        for folder in (site, PLUGINS):
            monkeypatch.syspath_prepend(str(folder))
        path = [str(site), str(PLUGINS), *filter(None, [os.environ.get('PYTHONPATH')])]
        monkeypatch.setenv('PYTHONPATH', os.pathsep.join(path))

    return install


@pytest.fixture(scope='session')
def make_raw() -> Callable[..., ScanFile]:
    return scan_at


@pytest.fixture(scope='session')
def make_data_set() -> Callable[..., Path]:
    return data_set


@pytest.fixture(scope='session')
def make_method() -> Callable[..., Method]:
    return method_of


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Return a function that gives settings in a folder of this test."""

    def make(**values: Any) -> Settings:
        places = {'bids_dir': tmp_path / 'bids', 'output_dir': tmp_path / 'out'}
        return from_dict({'device': 'cpu', **places, **values})

    return make


@pytest.fixture
def clean_nipype() -> Iterator[None]:
    """Put Nipype's configuration and loggers, which are one for the whole process, back afterwards."""
    before = deepcopy(config._sections)
    loggers = [logging.getLogger('nipype'), *nipype_logging.loggers.values()]
    known = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for section, values in before.items():
        for key, value in values.items():
            config.set(section, key, value)
    for logger, handlers, level, propagate in known:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
