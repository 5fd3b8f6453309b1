"""Sidecars and specifications of what is written for one scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bidsharm.bids.acquisition import acquisition_of
from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.imaging.templates import BUNDLED, Space, Template


def raw_uri(scan: ScanFile) -> str:
    """Return the BIDS URI of a raw scan (``raw`` is defined in DatasetLinks)."""
    return f'bids:raw:{scan.relative}'


def template_uri(template: Template) -> str:
    """Return where the image that defines a template space comes from."""
    if template.space.name == BUNDLED:
        return 'ICBM 2009a nonlinear symmetric, as bundled with nilearn'
    cohort = f'cohort-{template.space.cohort}/' if template.space.cohort else ''
    return f'https://templateflow.s3.amazonaws.com/tpl-{template.space.name}/{cohort}{template.brain.name}'


def image_spec(
    scan: ScanFile, desc: str, description: str, sources: Sequence[str], **sidecar: Any
) -> dict[str, Any]:
    """Return the specification of an image on the scan's own grid; ``extra`` fields join its sidecar."""
    fields = {'Description': description, 'Sources': list(sources), **sidecar}
    return {
        'path': OutputNames(scan).image(desc), 'kind': 'image', 'native': True, 'extra': True, 'sidecar': fields,
    }  # fmt: skip


def preproc_spec(scan: ScanFile, reused: Precomputed, anchor: ScanFile | None) -> dict[str, Any]:
    """Return the specification of the bias-corrected image, from what it was really made of.

    Acquisition parameters of the raw scan come along, for trainings.
    """
    acquisition = acquisition_of(scan.metadata)
    if reused.preproc and anchor is None:
        text = f'Taken from the derivatives "{reused.source}", in their grid and intensity scale'
        return image_spec(scan, 'preproc', text, [reused.uri(reused.preproc)], **acquisition)
    text = 'Bias field removed (N4); own grid and intensity scale of the scanner'
    return image_spec(scan, 'preproc', text, [raw_uri(scan)], **acquisition)


def mask_spec(scan: ScanFile, reused: Precomputed, anchor: ScanFile | None) -> dict[str, Any]:
    """Return the specification of the brain mask: found in the scan, given, or brought over from the anchor."""
    if anchor is not None:
        sources = [f'bids::{OutputNames(anchor).companion("mask", desc="brain")}', raw_uri(scan)]
    elif reused.brain_mask:
        sources = [reused.uri(reused.brain_mask)]
    else:
        sources = [raw_uri(scan)]
    path = OutputNames(scan).companion('mask', desc='brain')
    return {'path': path, 'kind': 'mask', 'native': True, 'sidecar': {'Type': 'Brain', 'Sources': sources}}


def dseg_spec(scan: ScanFile, desc: str, source: str) -> dict[str, Any]:
    """Return the specification of a segmentation into GM (1), WM (2) and CSF (3)."""
    fields = {'Manual': False, 'Description': 'Grey matter 1, white matter 2, CSF 3', 'Sources': [source]}
    path = OutputNames(scan).companion('dseg', desc=desc)
    return {'path': path, 'kind': 'dseg', 'native': True, 'sidecar': fields}


def uncertainty_spec(scan: ScanFile) -> dict[str, Any]:
    """Return the specification of the uncertainty of the harmonized image, which not every method gives."""
    own = f'bids::{OutputNames(scan).image("harmonized")}'
    text = 'Standard deviation that the method expects of its error, in units of the harmonized image'
    return {**image_spec(scan, 'uncertainty', text, [own], SkullStripped=True), 'optional': 'uncertainty'}


def unsupported_spec(scan: ScanFile) -> dict[str, Any]:
    """Return the specification of the structure that a method drew without support of the scan; only methods that can draw have it."""
    own = [f'bids::{OutputNames(scan).image(desc)}' for desc in ('harmonized', 'preproc')]
    text = (
        'Structure that the method drew and that the scan does not support, in units of the harmonized image'
    )
    return {**image_spec(scan, 'unsupported', text, own, SkullStripped=True), 'optional': 'unsupported'}


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
    """Return the specifications of image, mask and segmentation in an output space, in this order.

    Parameters
    ----------
    scan
        The raw scan.
    space
        Where to.
    reference
        URI, or words, for the image that defines the space; BIDS wants it for every space that it does not know.
    """
    names = OutputNames(scan)
    own = f'bids::{names.image("harmonized")}'
    fields: dict[str, Any] = {'Sources': [own]}
    if space.resolution:
        fields['Resolution'] = f'Grid of the template {space.name} at res-{space.resolution}'
    if reference:
        fields['SpatialReference'] = reference
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
