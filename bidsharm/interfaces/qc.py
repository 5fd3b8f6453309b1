"""Interfaces of quality control: the record of one scan, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.imaging import grids
from bidsharm.interfaces.base import (
    BaseInterfaceInputSpec,
    Interface,
    TraitedSpec,
    read,
    read_mask,
    read_tissue,
    traits,
)


class _AssessIn(BaseInterfaceInputSpec):
    before = File(exists=True, mandatory=True, desc='bias-corrected brain')
    after = File(exists=True, mandatory=True, desc='harmonized brain')
    mask_file = File(exists=True, mandatory=True, desc='brain mask')
    tissue_before = File(exists=True, mandatory=True, desc='tissue probabilities before')
    tissue_after = File(exists=True, mandatory=True, desc='tissue probabilities after')
    priors = File(exists=True, desc='maps of CSF, GM and WM that registration laid over the scan')
    identity = traits.Dict(mandatory=True, desc='subject, session, scan, contrast, site, harmonizer')
    record = traits.Dict(desc='what the harmonize node reported')
    warnings = traits.List(traits.List(traits.Str), desc='warnings of the earlier steps')
    notes = traits.Dict(desc='how each step was done')
    mask_method = traits.Str('', usedefault=True, desc='what made the brain mask')
    thresholds = traits.Dict(desc='settings that replace default thresholds')


class _AssessOut(TraitedSpec):
    qc = File(desc='QC record, JSON')
    verdict = traits.Enum('pass', 'warn', 'fail', desc='the verdict of that record')


class AssessScan(Interface):
    """Compare a scan before and after (:func:`bidsharm.evaluation.verdict.assess`)."""

    input_spec = _AssessIn
    output_spec = _AssessOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        from bidsharm.evaluation.verdict import assess, parse_thresholds

        inputs, record = self.inputs, self.given('record', {})
        before, affine = read(inputs.before)
        identity = json.loads(json.dumps(inputs.identity))
        sizes = grids.voxel_sizes(affine)
        result = assess(
            before=before,
            after=read(inputs.after)[0],
            mask=read_mask(inputs.mask_file),
            tissue_before=read_tissue(inputs.tissue_before),
            tissue_after=read_tissue(inputs.tissue_after),
            spacing=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
            contrast=identity['contrast'],
            priors=read_tissue(inputs.priors) if self.given('priors') else None,
            target_quantiles=_array(record.get('target_quantiles')),
            thresholds=parse_thresholds(self.given('thresholds', {})),
        )
        identity['harmonizer'].update(record.get('execution', {}))
        warnings = [text for group in self.given('warnings', []) for text in group]
        warnings += record.get('warnings', [])
        notes = {
            **self.given('notes', {}),
            'brain_mask': inputs.mask_method,
            'harmonizer': record.get('details', {}),
        }
        qc = {**identity, **result, 'warnings': warnings, 'notes': notes, 'version': __version__}
        out_file = cwd / 'qc.json'
        out_file.write_text(json.dumps(qc, indent=1, allow_nan=False))
        return {'qc': str(out_file), 'verdict': qc['verdict']}


def _array(values: Any) -> NDArray[np.float64] | None:
    return None if values is None else np.asarray(values, dtype=float)


class _DrawIn(BaseInterfaceInputSpec):
    head = File(exists=True, mandatory=True, desc='bias-corrected whole image')
    after = File(exists=True, mandatory=True, desc='harmonized brain (cropped)')
    mask_file = File(exists=True, mandatory=True, desc='brain mask (cropped)')
    dseg = File(exists=True, mandatory=True, desc='labels (cropped)')
    warped = File(exists=True, desc='the scan in template space')
    template = File(exists=True, desc='the template')
    stem = traits.Str(mandatory=True, desc='start of the figures’ names')


class _DrawOut(TraitedSpec):
    figures = traits.List(File(exists=True), desc='pictures for the report')


class DrawFigures(Interface):
    """Draw the pictures of one scan (:func:`bidsharm.reports.figures.draw_scan_figures`)."""

    input_spec = _DrawIn
    output_spec = _DrawOut

    margin_mm = 30.0

    def _compute(self, cwd: Path) -> dict[str, Any]:
        from bidsharm.reports.figures import draw_scan_figures

        head, affine = read(self.inputs.head)
        after, cut = read(self.inputs.after)
        mask, dseg = read_mask(self.inputs.mask_file), read(self.inputs.dseg)[0]
        start = np.round(np.linalg.inv(affine)[:3] @ [*cut[:3, 3], 1]).astype(int)
        room = np.ceil(self.margin_mm / grids.voxel_sizes(affine)).astype(int)
        low = np.maximum(start - room, 0)
        high = np.minimum(start + after.shape + room, head.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        offset = start - low
        shape = tuple(int(b - a) for a, b in zip(low, high, strict=True))
        overlay, template_affine = None, None
        if self.given('warped') and self.given('template'):
            template, template_affine = read(self.inputs.template)
            overlay = (read(self.inputs.warped)[0], template)
        drawn = draw_scan_figures(
            before=head[box],
            after=_place(after, shape, offset),
            mask=_place(mask, shape, offset),
            dseg=_place(dseg, shape, offset).astype(np.uint8),
            affine=grids.crop_affine(affine, (box[0], box[1], box[2])),
            out_dir=cwd,
            stem=self.inputs.stem,
            template_overlay=overlay,
            template_affine=template_affine,
        )
        return {'figures': [str(path) for path in drawn.values()]}


def _place(data: NDArray, shape: tuple[int, ...], offset: NDArray) -> NDArray:
    full = np.zeros(shape, dtype=data.dtype)
    full[tuple(slice(int(a), int(a) + n) for a, n in zip(offset, data.shape, strict=True))] = data
    return full
