"""Sidecars and specifications of what is written for one scan."""

from __future__ import annotations

from typing import Any

from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.imaging.templates import Space

#: Where a space that BIDS does not know is described.
_NATIVE_REFERENCE = 'the T1w of the subject'


def raw_uri(scan: ScanFile) -> str:
    """Return the BIDS URI of a raw scan (``raw`` is defined in DatasetLinks)."""
    return f'bids:raw:{scan.relative}'


def image_spec(scan: ScanFile, desc: str, description: str, **sidecar: Any) -> dict[str, Any]:
    """Return the specification of an image on the scan's own grid; ``extra`` fields join its sidecar."""
    fields = {'Description': description, 'Sources': [raw_uri(scan)], **sidecar}
    return {
        'path': OutputNames(scan).image(desc), 'kind': 'image', 'native': True, 'extra': True, 'sidecar': fields,
    }  # fmt: skip


def mask_spec(scan: ScanFile) -> dict[str, Any]:
    """Return the specification of the brain mask."""
    fields = {'Type': 'Brain', 'Sources': [raw_uri(scan)]}
    path = OutputNames(scan).companion('mask', desc='brain')
    return {'path': path, 'kind': 'mask', 'native': True, 'sidecar': fields}


def dseg_spec(scan: ScanFile, desc: str, source: str) -> dict[str, Any]:
    """Return the specification of a segmentation into GM (1), WM (2) and CSF (3)."""
    fields = {'Manual': False, 'Description': 'Grey matter 1, white matter 2, CSF 3', 'Sources': [source]}
    path = OutputNames(scan).companion('dseg', desc=desc)
    return {'path': path, 'kind': 'dseg', 'native': True, 'sidecar': fields}


def probseg_spec(scan: ScanFile, source: str) -> dict[str, Any]:
    """Return the specification of the three tissue probability maps."""
    names, fields = [], []
    for tissue in ('CSF', 'GM', 'WM'):
        names.append(OutputNames(scan).companion('probseg', label=tissue))
        fields.append({'Description': f'Probability of {tissue}', 'Sources': [source]})
    return {'path': names, 'kind': 'probseg', 'native': True, 'sidecar': fields}


def transform_spec(scan: ScanFile, source: str, target: str) -> dict[str, Any]:
    """Return the specification of a composite transform."""
    return {'path': OutputNames(scan).transform(source, target), 'kind': 'file'}


def space_specs(scan: ScanFile, space: Space, *, reference: str = '') -> list[dict[str, Any]]:
    """Return the specifications of image, mask and segmentation in an output space, in this order."""
    names = OutputNames(scan)
    own = f'bids::{names.image("harmonized")}'
    fields: dict[str, Any] = {'Sources': [own]}
    if space.resolution:
        fields['Resolution'] = f'Grid of the template {space.name} at res-{space.resolution}'
    if space.name == 'T1w':
        fields['SpatialReference'] = reference or _NATIVE_REFERENCE
    image = {
        **fields,
        'SkullStripped': True,
        'Description': 'Harmonized, resampled with a windowed sinc and clipped to the range before resampling',
    }
    entities = space.entities
    native = space.name == 'T1w'
    return [
        {'path': names.image('harmonized', entities), 'kind': 'image', 'sidecar': image, 'extra': True,
         'native': native},
        {'path': names.companion('mask', desc='brain', **entities), 'kind': 'mask', 'native': native,
         'sidecar': {**fields, 'Type': 'Brain'}},
        {'path': names.companion('dseg', **entities), 'kind': 'dseg', 'native': native,
         'sidecar': {**fields, 'Manual': False, 'Description': 'Grey matter 1, white matter 2, CSF 3'}},
    ]  # fmt: skip
