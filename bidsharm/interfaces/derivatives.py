"""The sink: results back on the grid of the raw scan, under their BIDS names, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File

from bidsharm.bids.atomic import copy_file, remove_with_sidecar, write_json
from bidsharm.bids.handoff import HANDOFF_ENDINGS
from bidsharm.bids.resume import fingerprint
from bidsharm.errors import UsageError
from bidsharm.imaging.grids import load_checked, open_image, to_native
from bidsharm.interfaces.base import BaseInterfaceInputSpec, Interface, TraitedSpec, traits
from bidsharm.temporary import atomic_path

#: Voxel type of each kind of image.
DTYPES = {'image': np.float32, 'probseg': np.float32, 'mask': np.uint8, 'dseg': np.uint8}


class _SaveIn(BaseInterfaceInputSpec):
    in_files = traits.List(
        File(exists=True),
        mandatory=True,
        desc='results, in the order of specs; optional ones stand last, are known by the names of their files, and may be missing',
    )
    specs = traits.List(traits.Dict, mandatory=True, desc='what becomes of each: see save_result')
    out_root = traits.Str(mandatory=True, desc='output folder')
    native = File(desc='raw scan, whose grid results without a space come back to')
    extra = traits.Dict(desc='sidecar fields known only after the run, for images')
    alone_in = traits.Str(
        '', usedefault=True, desc='relative folder that may hold no other images of this kind'
    )


class _SaveOut(TraitedSpec):
    out_files = traits.List(File(exists=True), desc='files written')
    fingerprints = traits.Dict(
        desc='size, time and SHA-256 of each, by its name relative to the output folder'
    )


class SaveDerivatives(Interface):
    """Write a group of results (:func:`save_result`)."""

    input_spec = _SaveIn
    output_spec = _SaveOut

    _always_run = True

    def _compute(self, cwd: Path) -> dict[str, Any]:
        root = Path(self.inputs.out_root)
        native_file = self.given('native')
        native = load_checked(Path(native_file)) if native_file else None
        extra = self.given('extra', {})
        written: dict[str, dict[str, Any]] = {}
        files, specs = self.inputs.in_files, list(self.inputs.specs)
        if self.inputs.alone_in:
            remove_others(root / self.inputs.alone_in, specs)
        for file, spec in zip(*_matched(files, specs, root), strict=True):
            written |= save_result(Path(file), spec, root, native, extra)
        return {'out_files': [str(root / name) for name in written], 'fingerprints': written}


def _matched(
    files: Sequence[str], specs: Sequence[dict[str, Any]], root: Path
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return files and what becomes of them; what an earlier run wrote for an optional one that is missing is removed."""
    sure = [spec for spec in specs if not spec.get('optional')]
    given = {Path(file).name.split('.')[0]: file for file in files[len(sure) :]}
    optional = [spec for spec in specs if spec.get('optional')]
    for spec in optional:
        if spec['optional'] not in given:
            _remove(spec, root)
    there = [spec for spec in optional if spec['optional'] in given]
    return [*files[: len(sure)], *(given[spec['optional']] for spec in there)], [*sure, *there]


def _remove(spec: dict[str, Any], root: Path) -> None:
    """Remove what an earlier run wrote of a result that there is not this time; it would speak for another image."""
    remove_with_sidecar(root / spec['path'])


def remove_others(folder: Path, specs: Sequence[Mapping[str, Any]]) -> None:
    """Remove what was written into a folder under other names, of the kinds that :func:`handoff_specs` lists.

    fMRIPrep takes all it finds for one scan, so an image that an earlier choice has left would stand beside the new one.
    """
    paths = (spec['path'] for spec in specs)
    names = [Path(name).name for path in paths for name in (path if isinstance(path, list) else [path])]
    kept = {*names, *(name.replace('.nii.gz', '.json') for name in names)}
    for ending in HANDOFF_ENDINGS:
        for file in folder.glob(f'*{ending}'):
            if file.name not in kept:
                file.unlink(missing_ok=True)


def save_result(
    source: Path, spec: dict[str, Any], root: Path, native: nib.Nifti1Image | None, extra: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write one result and its sidecar.

    Parameters
    ----------
    source
        The result of a node.
    spec
        ``path``: relative name, or a list of names for the volumes of a 4-D image. ``kind``: ``image``,
        ``mask``, ``dseg``, ``probseg`` or ``file`` (copied as it is). ``native``: put it on the raw grid.
        ``sidecar``: JSON fields, or a list of them; left out for files. ``extra``: add ``extra`` to it.
        ``optional``: the name of a file that a method may not give; such specs stand last.
    root
        Output folder.
    native
        The raw scan.
    extra
        Fields known only after the run.

    Returns
    -------
    dict
        Fingerprint of each file as this process made it, by its name; another one may write over it at any time.
        Sidecars come before their images, so an image is never without one.

    Raises
    ------
    UsageError
        If a name leads to the raw scan itself.
    """
    if spec['kind'] == 'file':
        target = root / spec['path']
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
            return {spec['path']: fingerprint(temporary)}
    image = open_image(source)
    names = spec['path'] if isinstance(spec['path'], list) else [spec['path']]
    sidecars = spec['sidecar'] if isinstance(spec['sidecar'], list) else [spec['sidecar']]
    volumes = [image] if len(names) == 1 else nib.four_to_three(image)
    raw = native.get_filename() if native is not None else None
    for target in (root / name for name in names):
        if raw and target.exists() and target.samefile(raw):
            raise UsageError(
                'The raw scan would be written over.', where=target.name, fix='Choose another output folder.'
            )
    written = {}
    for name, sidecar, volume in zip(names, sidecars, volumes, strict=True):
        target = root / name
        fields = {**sidecar, **(extra if spec.get('extra') else {})}
        write_json(target.with_name(target.name.replace('.nii.gz', '.json')), fields)
        on_grid = native if spec.get('native') else None
        written[name] = save_image(volume, target, kind=spec['kind'], native=on_grid)
    return written


def save_image(
    image: nib.Nifti1Image, path: Path, *, kind: str, native: nib.Nifti1Image | None
) -> dict[str, Any]:
    """Write an image atomically with the voxel type of its kind and no intensity scaling; return its fingerprint."""
    dtype = DTYPES[kind]
    data = np.asarray(image.dataobj)
    data = np.round(data).astype(dtype) if np.issubdtype(dtype, np.integer) else data.astype(dtype)
    plain = nib.Nifti1Image(data, image.affine)
    plain.set_sform(image.affine, code=4 if native is None else 1)
    plain.set_qform(image.affine, code=4 if native is None else 1)
    plain.header.set_xyzt_units('mm')
    result = plain if native is None else to_native(plain, native)
    with atomic_path(path) as temporary:
        result.to_filename(temporary)
        return fingerprint(temporary)


class _NativeIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='result, perhaps cropped, in canonical axis order')
    native = File(exists=True, mandatory=True, desc='image whose grid it comes back to')
    kind = traits.Enum(*DTYPES, usedefault=True, desc='what it is; decides the voxel type')
    name = traits.Str(mandatory=True, desc='name of the file, without extension')


class _NativeOut(TraitedSpec):
    out_file = File(desc='the result on the grid of the native image, compressed')


class OnNativeGrid(Interface):
    """Put a result back on the voxels of the image that it was made of, for pipelines that write their own derivatives."""

    input_spec = _NativeIn
    output_spec = _NativeOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        target = cwd / f'{self.inputs.name}.nii.gz'
        native = load_checked(Path(self.inputs.native))
        save_image(open_image(self.inputs.in_file), target, kind=self.inputs.kind, native=native)
        return {'out_file': str(target)}


class _ClipIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='resampled image')
    mask_file = File(exists=True, mandatory=True, desc='mask on the same grid')
    reference = File(exists=True, mandatory=True, desc='image before resampling')


class _ClipOut(TraitedSpec):
    out_file = File(desc='image within the range of the reference, 0 outside the mask')


class ClipToRange(Interface):
    """Undo the overshoot of a sinc interpolation: no value beyond those of the image before, 0 outside the mask."""

    input_spec = _ClipIn
    output_spec = _ClipOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        from bidsharm.interfaces.base import read, read_mask, write

        data, affine = read(self.inputs.in_file)
        reference = read(self.inputs.reference)[0]
        inside = reference[reference != 0]
        clipped = np.clip(data, inside.min(), inside.max())
        return {
            'out_file': write(
                cwd / 'clipped.nii', np.where(read_mask(self.inputs.mask_file), clipped, 0), affine
            )
        }


class _SaveQCIn(BaseInterfaceInputSpec):
    qc = File(exists=True, mandatory=True, desc='QC record')
    figures = traits.List(File(exists=True), mandatory=True, desc='pictures')
    sources = traits.Dict(mandatory=True, desc='files that the scan was made from, by BIDS URI')
    methods = traits.Dict(desc='how it was made, in words: see bidsharm.bids.boilerplate')
    out_root = traits.Str(mandatory=True, desc='output folder')
    qc_path = traits.Str(mandatory=True, desc='relative name of the record')
    figures_dir = traits.Str(mandatory=True, desc='relative folder of the pictures')
    digest = traits.Str(mandatory=True, desc='digest of the settings that decide the result')
    saved = traits.List(traits.Dict, mandatory=True, desc='fingerprints of what the other sinks wrote')
    handoff = traits.Dict(desc='fingerprints of what was written for fMRIPrep, by name in the folder for it')


class _SaveQCOut(TraitedSpec):
    out_file = File(exists=True, desc='the record')


class SaveQC(Interface):
    """Write pictures and, last of all, the QC record: its presence says that the scan is complete."""

    input_spec = _SaveQCIn
    output_spec = _SaveQCOut

    _always_run = True

    def _compute(self, cwd: Path) -> dict[str, Any]:
        import json

        inputs, root = self.inputs, Path(self.inputs.out_root)
        pictures = {}
        for file in map(Path, inputs.figures):
            target = root / inputs.figures_dir / file.name
            copy_file(file, target)
            pictures[file.stem.rsplit('_desc-', 1)[-1]] = target.relative_to(root).as_posix()
        written = {name: print_ for group in inputs.saved for name, print_ in group.items()}
        record = {
            **json.loads(Path(inputs.qc).read_text()),
            'figures': pictures,
            'outputs': written,
            'digest': inputs.digest,
            'inputs': {uri: fingerprint(Path(file)) for uri, file in inputs.sources.items()},
            'methods': self.given('methods', {}),
        }
        if handed_off := self.given('handoff'):
            record['fmriprep_derivatives'] = handed_off
        target = root / inputs.qc_path
        write_json(target, record)
        return {'out_file': str(target)}
