"""Interfaces of preprocessing: conform, brain mask, bias field, preparation for registration, segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File
from numpy.typing import NDArray

from bidsharm.errors import ScanError
from bidsharm.imaging import bias, grids, masks, segmentation, templates
from bidsharm.interfaces.base import (
    BaseInterfaceInputSpec,
    Interface,
    TraitedSpec,
    read,
    read_mask,
    read_tissue,
    traits,
    write,
)
from bidsharm.interfaces.isolated import run_isolated


class _ConformIn(BaseInterfaceInputSpec):
    in_file = File(mandatory=True, desc='raw scan')


class _ConformOut(TraitedSpec):
    out_file = File(desc='checked scan, float32, canonical axis order')
    warnings = traits.List(traits.Str, desc='what was found and mended')


class ConformScan(Interface):
    """Check header and voxels and bring the axes into canonical order (:func:`bidsharm.imaging.grids.conform`)."""

    input_spec = _ConformIn
    output_spec = _ConformOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        conformed = grids.conform(Path(self.inputs.in_file))
        out_file = cwd / 'conformed.nii'
        conformed.image.to_filename(out_file)
        return {'out_file': str(out_file), 'warnings': list(conformed.warnings)}


class _BrainIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')
    name = traits.Str(desc='name of the scan, for messages')
    skull_strip = traits.Enum('auto', 'force', 'skip', usedefault=True, desc='what to do about the skull')
    device = traits.Str('cpu', usedefault=True, nohash=True, desc='where deepbet runs')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells the scheduler that a card is needed'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads')


class _BrainOut(TraitedSpec):
    out_mask = File(desc='brain mask, uint8')
    method = traits.Str(desc='what made the mask')
    sidecar = traits.Dict(desc='SkullStripped, for the sidecar of the whole image')
    warnings = traits.List(traits.Str, desc='doubts about the mask')


class ExtractBrain(Interface):
    """Brain mask by deepbet, or what is left of a scan that is already stripped."""

    input_spec = _BrainIn
    output_spec = _BrainOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = read(self.inputs.in_file)
        mode, name = self.inputs.skull_strip, self.given('name', '')
        support = None if mode == 'force' else masks.stripped_support(data, affine)
        if mode == 'skip':
            mask = data != masks.background_value(data) if support is None else support
            return _mask_results(cwd, mask, affine, name, CAME_STRIPPED, True)
        mask = _deepbet_mask(self.inputs.in_file, cwd, name, self.inputs.device, self.inputs.num_threads)
        if support is not None and masks.is_stripped(support, mask):
            return _mask_results(cwd, support, affine, name, CAME_STRIPPED, True)
        results = _mask_results(cwd, mask, affine, name, 'deepbet', False)
        results['warnings'] += [*_doubts(support, mask, affine), *_companions(data, mask, affine)]
        return results


#: What made the mask of a scan that is skull-stripped.
CAME_STRIPPED = 'the scan came skull-stripped'
IF_STRIPPED = 'If the scan is skull-stripped, use --skull-strip skip.'


def _deepbet_mask(in_file: str, cwd: Path, name: str, device: str, threads: int) -> NDArray[np.bool_]:
    out_file = cwd / 'deepbet_mask.nii'
    request = {'in_file': in_file, 'out_file': str(out_file), 'device': device, 'name': name}
    run_isolated('deepbet', request, cwd, threads=threads)
    return read_mask(out_file)


def _doubts(support: NDArray | None, mask: NDArray, affine: NDArray) -> list[str]:
    """Say it where a scan could have been taken for a stripped one."""
    if support is None:
        return []
    rest, brain = (masks.volume_ml(item, affine) for item in (support, mask))
    warning = (
        f'What is not background holds {rest:.0f} ml, which a brain could; deepbet sees a head around a brain of '
        f'{brain:.0f} ml. {IF_STRIPPED}'
    )
    return [warning]


def _companions(data: NDArray, mask: NDArray, affine: NDArray) -> list[str]:
    """Say it where a second head, or something as large as a brain, lies beside the head."""
    volume = masks.beside_the_head(data, mask, affine)
    if volume < masks.BRAIN_ML[0]:
        return []
    return [f'Something of {volume:.0f} ml lies beside the head whose brain was taken; is it the right one?']


class _ReuseIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')
    mask_file = File(
        exists=True, mandatory=True, desc='mask of another pipeline, or of a template in this space'
    )
    name = traits.Str(desc='name of the scan, for messages')
    method = traits.Str('reused', usedefault=True, desc='what made the mask')
    judge = traits.Enum(
        'mask', 'deepbet', 'nobody', usedefault=True,
        desc='what says whether the scan is skull-stripped; with deepbet, what is left of such a scan is the mask',
    )  # fmt: skip
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads')


class ReuseMask(Interface):
    """Bring a given brain mask onto the grid of the conformed scan (nearest voxel; world coordinates are shared)."""

    input_spec = _ReuseIn
    output_spec = _BrainOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        image, mask = grids.open_image(self.inputs.in_file), grids.open_image(self.inputs.mask_file)
        name = self.given('name', '')
        support = masks.stripped_support(np.asarray(image.dataobj, dtype=np.float32), image.affine)
        doubts: list[str] = []
        # A mask by registration is no judge: the template's head does not fit a stripped scan.
        if self.inputs.judge == 'deepbet' and support is not None:
            try:
                judge = _deepbet_mask(self.inputs.in_file, cwd, name, 'cpu', self.inputs.num_threads)
            except ScanError as error:
                doubts = [
                    f'Whether the scan is skull-stripped could not be told ({error.what}) {IF_STRIPPED}'
                ]
            else:
                if masks.is_stripped(support, judge):
                    return _mask_results(cwd, support, image.affine, name, CAME_STRIPPED, True)
                doubts = _doubts(support, judge, image.affine)
        found = np.squeeze(np.asarray(mask.dataobj)) > 0.5
        if not grids.same_grid(image, mask):
            found = grids.resample(found, mask.affine, image.shape, image.affine, order=0) > 0.5
        if not found.any():
            raise ScanError(
                'The given brain mask does not lie on this scan.',
                where=name,
                fix='Is it of the same subject?',
            )
        stripped = self.inputs.judge == 'mask' and masks.is_stripped(support, found)
        results = _mask_results(cwd, found, image.affine, name, self.inputs.method, stripped)
        results['warnings'] += doubts
        return results


def _mask_results(
    cwd: Path, mask: NDArray, affine: NDArray, name: str, method: str, stripped: bool
) -> dict[str, Any]:
    """Check a mask, write it, and return the outputs that all makers of masks have."""
    warnings = masks.check_brain(mask, affine, name=name)
    out_mask = write(cwd / 'brain_mask.nii', mask, affine, np.uint8)
    return {
        'out_mask': out_mask, 'method': method, 'sidecar': {'SkullStripped': stripped}, 'warnings': warnings
    }  # fmt: skip


class _CoarseIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')
    mask_file = File(exists=True, mandatory=True, desc='brain mask')
    size_mm = traits.Float(bias.COARSE_MM, usedefault=True, desc='voxel size of the copy')


class _CoarseOut(TraitedSpec):
    out_file = File(desc='coarse, cropped, positive copy')
    out_mask = File(desc='its mask')
    shift = traits.Float(desc='what was added to the intensities')


class CoarseCopy(Interface):
    """Make the copy on which N4 runs (:func:`bidsharm.imaging.bias.coarse_copy`)."""

    input_spec = _CoarseIn
    output_spec = _CoarseOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = read(self.inputs.in_file)
        copy = bias.coarse_copy(data, read_mask(self.inputs.mask_file), affine, size_mm=self.inputs.size_mm)
        return {
            'out_file': write(cwd / 'coarse.nii', copy.data, copy.affine),
            'out_mask': write(cwd / 'coarse_mask.nii', copy.mask, copy.affine, np.uint8),
            'shift': copy.shift,
        }


class _ShrinkIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='image')
    size_mm = traits.Float(bias.COARSE_MM, usedefault=True, desc='voxel size of the copy')


class _ShrinkOut(TraitedSpec):
    out_file = File(desc='coarse copy')


class ShrinkImage(Interface):
    """Average an image down (:func:`bidsharm.imaging.grids.shrink`)."""

    input_spec = _ShrinkIn
    output_spec = _ShrinkOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = grids.shrink(*read(self.inputs.in_file), self.inputs.size_mm)
        return {'out_file': write(cwd / 'coarse.nii', data, affine)}


class UpperHead(Interface):
    """Make a coarse copy of a head without the neck (:func:`bidsharm.imaging.masks.upper_head`)."""

    input_spec = _ShrinkIn
    output_spec = _ShrinkOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = masks.upper_head(*grids.shrink(*read(self.inputs.in_file), self.inputs.size_mm))
        return {'out_file': write(cwd / 'upper.nii', data, affine)}


class _CutIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='head')
    mask_file = File(exists=True, mandatory=True, desc='probability of brain on the same grid')
    margin_mm = traits.Float(1.5, usedefault=True, desc='what is kept around the brain')


class _CutOut(TraitedSpec):
    out_file = File(desc='brain with a margin; 0 elsewhere')


class CutHead(Interface):
    """Cut a head down to a rough brain mask and a margin."""

    input_spec = _CutIn
    output_spec = _CutOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = read(self.inputs.in_file)
        keep = masks.grow(read(self.inputs.mask_file)[0] > 0.5, affine, self.inputs.margin_mm)
        return {'out_file': write(cwd / 'cut.nii', np.where(keep, data, 0), affine)}


class _FieldIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')
    mask_file = File(exists=True, mandatory=True, desc='brain mask')
    field_file = File(exists=True, desc='field of the coarse copy; left out: no correction')
    shift = traits.Float(0.0, usedefault=True, desc='what CoarseCopy added')


class _FieldOut(TraitedSpec):
    out_file = File(desc='bias-corrected whole image')
    brain_file = File(desc='bias-corrected image cropped to the brain, skull still in it')
    brain_mask = File(desc='mask on the grid of brain_file')
    coarse_brain = File(desc='masked 2 mm copy for registration')
    coarse_head = File(desc='unmasked 2 mm copy for registration across contrasts')


class ApplyField(Interface):
    """Divide the scan by its field, and cut out the brain: all later steps work on the cut."""

    input_spec = _FieldIn
    output_spec = _FieldOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = read(self.inputs.in_file)
        mask = read_mask(self.inputs.mask_file)
        field = self.given('field_file')
        if field:
            values, field_affine = read(field)
            corrected, _ = bias.apply_field(data, mask, affine, values, field_affine, shift=self.inputs.shift)
            # What is background by its exact value has no field, and stays what it is where 0 is an intensity.
            empty = (data == masks.background_value(data)) & ~mask
            data = np.where(empty, data, corrected)
        margin = np.ceil(6.0 / grids.voxel_sizes(affine)).astype(int)
        box = grids.bounding_box(mask, (int(margin[0]), int(margin[1]), int(margin[2])))
        cut = grids.crop_affine(affine, box)
        coarse, coarse_affine = grids.shrink(np.where(mask, data, 0)[box], cut, bias.COARSE_MM)
        head, head_affine = grids.shrink(data, affine, bias.COARSE_MM)
        return {
            'out_file': write(cwd / 'preproc.nii', data, affine),
            'brain_file': write(cwd / 'brain.nii', data[box], cut),
            'brain_mask': write(cwd / 'mask.nii', mask[box], cut, np.uint8),
            'coarse_brain': write(cwd / 'coarse_brain.nii', coarse, coarse_affine),
            'coarse_head': write(cwd / 'coarse_head.nii', head, head_affine),
        }


class _TemplateIn(BaseInterfaceInputSpec):
    space = traits.Str(templates.BUNDLED, usedefault=True, desc='name of the template')
    image = File(exists=True, desc='template T1w; left out: the bundled one')
    mask = File(exists=True, desc='its brain mask, where the image is a whole head')
    step = traits.Int(1, usedefault=True, desc='keep every so many voxels of the bundled template')


class _TemplateOut(TraitedSpec):
    brain = File(desc='skull-stripped T1w, 1 mm')
    coarse_brain = File(desc='the same at 2 mm')
    priors = File(desc='4-D probabilities of CSF, GM and WM (bundled template only)')
    mask = File(desc='brain mask')
    coarse_head = File(desc='the bundled template in a simple shell of bone and scalp, 2 mm')


class PrepareTemplate(Interface):
    """Write the template's brain, a coarse copy, its mask, and the tissue priors of the bundled one."""

    input_spec = _TemplateIn
    output_spec = _TemplateOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        results: dict[str, Any] = {}
        image = self.given('image')
        if image:
            data, affine = read(image)
            mask = self.given('mask')
            data = np.where(read_mask(mask), data, 0) if mask else data
        else:
            brain, priors = templates.tissue_priors(step=self.inputs.step)
            data, affine = np.asarray(brain.dataobj), brain.affine
            results['priors'] = str(cwd / 'priors.nii')
            priors.to_filename(results['priors'])
            results['coarse_head'] = write(cwd / 'template_head.nii', *_template_head())
        coarse, coarse_affine = grids.shrink(data, affine, bias.COARSE_MM)
        return {
            **results,
            'brain': write(cwd / 'template.nii', data, affine),
            'coarse_brain': write(cwd / 'template_coarse.nii', coarse, coarse_affine),
            'mask': write(cwd / 'template_mask.nii', data > 0, affine, np.uint8),
        }


def _template_head() -> tuple[NDArray, NDArray]:
    """Return a T1w-like head around the template's brain, at 2 mm: what a registration of whole heads can hold on to."""
    from bidsharm.simulation.anatomy import TISSUES
    from bidsharm.simulation.heads import load_template

    brightness = {'CSF': 30, 'GM': 60, 'WM': 90, 'meninges': 35, 'skull': 10, 'scalp': 85}
    head = load_template(step=2)
    return np.tensordot(
        [brightness.get(tissue, 0) for tissue in TISSUES], head.fractions, axes=1
    ), head.affine


class _SegmentIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='bias-corrected or harmonized brain')
    mask_file = File(exists=True, mandatory=True, desc='brain mask on the same grid')
    priors = File(exists=True, mandatory=True, desc='4-D probabilities of CSF, GM, WM on the same grid')


class _SegmentOut(TraitedSpec):
    tissue = File(desc='4-D probabilities of CSF, GM, WM')
    dseg = File(desc='labels 1 GM, 2 WM, 3 CSF')


class SegmentTissue(Interface):
    """Segment CSF, GM and WM (:func:`bidsharm.imaging.segmentation.segment`)."""

    input_spec = _SegmentIn
    output_spec = _SegmentOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        data, affine = read(self.inputs.in_file)
        mask = read_mask(self.inputs.mask_file)
        result = segmentation.segment(data, mask, read_tissue(self.inputs.priors), affine)
        return {
            'tissue': write(cwd / 'tissue.nii', np.moveaxis(result.probability, 0, -1), affine),
            'dseg': write(cwd / 'dseg.nii', result.labels, affine, np.uint8),
        }
