"""The harmonize node, one type for every method, and the node that learns a target."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.errors import ScanError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.beyond import whole_head, with_brain
from bidsharm.harmonizers.contract import (
    Acquisition,
    Canonical,
    Cohort,
    Execution,
    Harmonized,
    Harmonizer,
    Reference,
    Scan,
    Site,
    Target,
)
from bidsharm.harmonizers.execution import device_lock
from bidsharm.harmonizers.native import harmonize_scan
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


def parse_target(text: str) -> Target:
    """Turn ``canonical``, ``site:NAME``, ``reference:FILE`` or ``acquisition:NAME`` into a target."""
    if text == 'canonical':
        return Canonical()
    kind, _, value = text.partition(':')
    if kind == 'site':
        return Site(value)
    return Acquisition(value) if kind == 'acquisition' else Reference(value)


def read_scan(record: Mapping[str, Any]) -> Scan:
    """Read one preprocessed scan from its files."""
    data, affine = read(record['image'])
    tissue = record.get('tissue')
    return Scan(
        data=data,
        mask=read_mask(record['mask']),
        affine=affine,
        contrast=record['contrast'],
        name=record.get('name', ''),
        site=record.get('site', ''),
        tissue=read_tissue(tissue) if tissue else None,
    )


def with_companions(scan: Scan, records: Sequence[Mapping[str, Any]]) -> Scan:
    """Return a scan with the other contrasts of its visit, which lie on its grid.

    Where a companion does not reach, it counts as outside the brain.
    """
    others = []
    for record in records:
        data, _ = read(record['image'])
        mask = np.asarray(scan.mask).astype(bool) & (data != 0)
        others.append(Scan(data, mask, scan.affine, record['contrast'], record['name'], scan.site))
    return replace(scan, companions=tuple(others))


def open_method(request: Mapping[str, Any]) -> Harmonizer:
    """Return the method of a request, with what it learned."""
    execution = Execution(**request.get('execution', {}))
    folder = request.get('model_dir')
    if folder:
        return bundle.load(Path(folder), execution)
    return registry.get(request['harmonizer'])(execution)


def harmonize_files(request: Mapping[str, Any]) -> dict[str, Any]:
    """Harmonize one scan, files in and files out (runs in its own process)."""
    scan = with_companions(read_scan(request), request.get('companions') or ())
    with device_lock(Execution(**request.get('execution', {})).device):
        method = open_method(request)  # a network goes to the card here
        started = time.perf_counter()
        result = harmonize_scan(method, scan, parse_target(request['target']))
        seconds = time.perf_counter() - started
    maps = {'uncertainty': result.uncertainty, 'unsupported': result.unsupported}
    given = {name: values for name, values in maps.items() if values is not None}
    if not all(np.isfinite(each[scan.mask]).all() for each in (result.image, *given.values())):
        raise ScanError(f'{method.card.name} gave values that are not numbers.', where=scan.name)
    image = np.where(scan.mask, result.image, 0).astype(np.float32)
    answer: dict[str, Any] = {
        'out_file': write(Path(request['out_file']), image, scan.affine),
        'details': dict(result.details),
        'warnings': list(result.warnings),
        'execution': {'device': method.execution.device, 'precision': method.execution.precision,
                      'steps': list(method.execution.steps), 'seconds': round(seconds, 3)},
    }  # fmt: skip
    if request.get('head'):
        answer |= _head_of(result, scan, image, request)
    quantiles = method.target_quantiles(scan.contrast)
    answer['target_quantiles'] = None if quantiles is None else [float(value) for value in quantiles]
    for name, values in given.items():
        file = Path(request['out_file']).with_name(f'{name}.nii')
        answer[name] = write(file, np.where(scan.mask, values, 0).astype(np.float32), scan.affine)
    return answer


def _head_of(
    result: Harmonized, scan: Scan, brain: NDArray[np.float32], request: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the whole head, or the brain on the grid of the head where the method knows no more; say which."""
    head, affine = read(request['head'])
    whole = whole_head(result, scan, head, affine)
    rest = np.zeros_like(head) if whole is None else whole
    file = write(
        Path(request['out_file']).with_name('head.nii'), with_brain(rest, affine, scan, brain), affine
    )
    return {'head': file, 'head_kept': whole is not None}


def fit_files(request: Mapping[str, Any]) -> dict[str, Any]:
    """Learn a target from preprocessed scans and save the bundle (runs in its own process)."""
    execution = Execution(**request.get('execution', {}))
    cohort = Cohort([read_scan(record) for record in request['scans']])
    with device_lock(execution.device):
        method = open_method(request)  # a trained one learns what describes the target
        report = method.fit(cohort, target=parse_target(request['target']), seed=int(request.get('seed', 0)))
    digest = bundle.save(method, Path(request['out_dir']))
    return {'digest': digest, 'scans': list(report.scans)}


class _HarmonizeIn(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='bias-corrected brain')
    mask_file = File(exists=True, mandatory=True, desc='brain mask')
    tissue = File(exists=True, desc='4-D tissue probabilities')
    head_file = File(exists=True, desc='bias-corrected whole image; given: the head is harmonized too')
    head_sidecar = traits.Dict(desc='SkullStripped of that image')
    companions = traits.List(
        File(exists=True), desc='brains of other contrasts of the visit, on the grid of the scan'
    )
    companion_contrasts = traits.List(traits.Str, desc='their contrasts')
    companion_names = traits.List(traits.Str, desc='their names')
    contrast = traits.Str(mandatory=True, desc='BIDS suffix')
    name = traits.Str('', usedefault=True, desc='name of the scan')
    site = traits.Str('', usedefault=True, desc='site label')
    harmonizer = traits.Str(mandatory=True, desc='registry name')
    target = traits.Str(
        'canonical', usedefault=True, desc='canonical, site:NAME, reference:FILE or acquisition:NAME'
    )
    model_dir = traits.Str('', usedefault=True, nohash=True, desc='bundle; its digest counts, not its place')
    model_digest = traits.Str('', usedefault=True, desc='digest of the bundle')
    weights_digest = traits.Str('', usedefault=True, desc='digest of weights that ship with the method')
    execution = traits.Dict(desc='device, precision, threads, seed')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells the scheduler that a card is needed'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads')


class _HarmonizeOut(TraitedSpec):
    out_file = File(desc='harmonized brain')
    uncertainty = File(desc='standard deviation per voxel, where the method gives one')
    unsupported = File(
        desc='structure that the method drew without support of the scan, for methods that can'
    )
    record = traits.Dict(desc='details, execution, target quantiles')
    sidecar = traits.Dict(desc='fields for the sidecar of the harmonized image')
    head = File(desc='whole image, harmonized; the brain alone where the method cannot go on beyond the mask')
    head_sidecar = traits.Dict(desc='fields for its sidecar: SkullStripped tells which')


class HarmonizeScan(Interface):
    """Harmonize one scan in a process of its own."""

    input_spec = _HarmonizeIn
    output_spec = _HarmonizeOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        inputs = self.inputs
        request = {
            'image': inputs.in_file, 'mask': inputs.mask_file, 'tissue': self.given('tissue'),
            'contrast': inputs.contrast, 'name': inputs.name, 'site': inputs.site,
            'harmonizer': inputs.harmonizer, 'target': inputs.target, 'model_dir': inputs.model_dir,
            'execution': self.given('execution', {}), 'out_file': str(cwd / 'harmonized.nii'),
            'head': self.given('head_file'), 'companions': self._companions(),
        }  # fmt: skip
        answer = run_isolated('harmonize', request, cwd, threads=inputs.num_threads)
        outputs: dict[str, Any] = {
            key: answer.pop(key)
            for key in ('out_file', 'uncertainty', 'unsupported', 'head')
            if key in answer
        }
        sidecar = {'Harmonization': self._provenance(answer)}
        if 'head' in outputs:
            brain_only = not answer.pop('head_kept')
            stripped = bool(brain_only or self.given('head_sidecar', {}).get('SkullStripped', False))
            outputs['head_sidecar'] = {'SkullStripped': stripped, **sidecar}
        return {**outputs, 'record': answer, 'sidecar': sidecar}

    def _companions(self) -> list[dict[str, str]]:
        columns = [self.given(f'companion{part}', []) for part in ('s', '_contrasts', '_names')]
        return [
            dict(zip(('image', 'contrast', 'name'), row, strict=True)) for row in zip(*columns, strict=True)
        ]

    def _provenance(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return what a reader of the image needs to know; no times, so that reruns write equal files."""
        card, execution = registry.get(self.inputs.harmonizer).card, answer['execution']
        fields = {
            'Method': card.name, 'Paper': card.paper, 'DOI': card.doi, 'Fidelity': card.fidelity,
            'Target': parse_target(self.inputs.target).label, 'ModelDigest': self.inputs.model_digest,
            'WeightsDigest': self.inputs.weights_digest, 'Companions': self.given('companion_names', []),
            'Device': execution['device'], 'Precision': execution['precision'],
            'Seed': self.given('execution', {}).get('seed', 0), 'MemorySteps': execution['steps'],
            'BidsharmVersion': __version__, 'CanDrawNewStructure': card.changes_anatomy,
            'Details': answer['details'],
        }  # fmt: skip
        return {key: value for key, value in fields.items() if value not in ('', [], {})}


class _FitIn(BaseInterfaceInputSpec):
    images = traits.List(File(exists=True), mandatory=True, desc='bias-corrected brains')
    masks = traits.List(File(exists=True), mandatory=True, desc='their masks')
    tissues = traits.List(File(exists=True), mandatory=True, desc='their tissue probabilities')
    contrasts = traits.List(traits.Str, mandatory=True, desc='their contrasts')
    names = traits.List(traits.Str, mandatory=True, desc='their names')
    sites = traits.List(traits.Str, mandatory=True, desc='their sites')
    harmonizer = traits.Str(mandatory=True, desc='registry name')
    target = traits.Str(mandatory=True, desc='canonical, site:NAME or reference:FILE')
    out_dir = traits.Str(mandatory=True, desc='where the bundle goes')
    model_dir = traits.Str(
        '', usedefault=True, nohash=True, desc='bundle of a trained method that learns a target'
    )
    model_digest = traits.Str('', usedefault=True, desc='its digest')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells the scheduler that a card is needed'
    )
    execution = traits.Dict(desc='device, precision, threads, seed')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads')


class _FitOut(TraitedSpec):
    record = traits.Dict(desc='digest of the bundle and the scans used')


class FitTarget(Interface):
    """Learn a target from preprocessed scans."""

    # What it makes lies outside its own folder, where Nipype does not see that somebody has taken it away.
    _always_run = True

    input_spec = _FitIn
    output_spec = _FitOut

    def _compute(self, cwd: Path) -> dict[str, Any]:
        inputs = self.inputs
        columns = zip(
            inputs.images,
            inputs.masks,
            inputs.tissues,
            inputs.contrasts,
            inputs.names,
            inputs.sites,
            strict=True,
        )
        keys = ('image', 'mask', 'tissue', 'contrast', 'name', 'site')
        request = {
            'scans': [dict(zip(keys, row, strict=True)) for row in columns],
            'harmonizer': inputs.harmonizer, 'target': inputs.target, 'out_dir': inputs.out_dir, 'model_dir': inputs.model_dir,
            'execution': self.given('execution', {}), 'seed': self.given('execution', {}).get('seed', 0),
        }  # fmt: skip
        return {'record': run_isolated('fit', request, cwd, threads=inputs.num_threads)}
