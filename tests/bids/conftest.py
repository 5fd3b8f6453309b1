"""Small BIDS data sets of random voxels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.names import ScanFile, parse_name
from bidsharm.bids.query import Selection, select_scans
from bidsharm.settings import Settings, from_dict


class Tree:
    """A data set that grows by names: ``tree.add('sub-01_ses-a_T1w', Manufacturer='Siemens')``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rng = np.random.default_rng(7)
        root.mkdir(parents=True, exist_ok=True)
        description = {'Name': 'Tiny heads', 'BIDSVersion': '1.10.0', 'License': 'CC0'}
        (root / 'dataset_description.json').write_text(json.dumps(description))

    def add(self, name: str, extension: str = '.nii.gz', folder: str = '', **sidecar: Any) -> Path:
        """Write an image of noise where its name belongs (or into ``folder``), and its sidecar if there is one."""
        parsed = parse_name(name)
        if not folder:
            assert parsed is not None, f'{name}: say in which folder it lies'
            session = f'/ses-{parsed[0]["ses"]}' if 'ses' in parsed[0] else ''
            folder = f'sub-{parsed[0]["sub"]}{session}/anat'
        path = self.root / folder / f'{name}{extension}'
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = self._rng.integers(0, 1000, (10, 11, 12)).astype(np.int16)
        nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1])).to_filename(path)
        if sidecar:
            path.with_name(f'{name}.json').write_text(json.dumps(sidecar))
        return path

    def participants(self, text: str, encoding: str = 'utf-8') -> None:
        """Write participants.tsv, byte by byte as given."""
        (self.root / 'participants.tsv').write_bytes(text.encode(encoding))

    def filters(self, content: Mapping[str, Any]) -> Path:
        """Write a BIDS filter file beside the data set."""
        path = self.root.parent / 'filters.json'
        path.write_text(json.dumps(content))
        return path

    def settings(self, **values: Any) -> Settings:
        """Return settings of a run on this data set."""
        return from_dict({'bids_dir': self.root, 'output_dir': self.root.parent / 'out', **values})

    def select(self, **values: Any) -> Selection:
        """Query the data set."""
        return select_scans(self.settings(**values))

    def names(self, **values: Any) -> list[str]:
        """Return the names of the scans that a query finds."""
        return [scan.name for scan in self.select(**values).scans]

    def scan(self, name: str, **more: Any) -> ScanFile:
        """Add a scan and return it."""
        path = self.add(name)
        parsed = parse_name(name)
        assert parsed is not None
        return ScanFile(path, parsed[0], parsed[1], self.root, **more)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / 'bids')


@pytest.fixture
def make_tree() -> Callable[[Path], Tree]:
    return Tree
