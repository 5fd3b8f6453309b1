"""Bias field, registration and segmentation: bidsharm's way beside the same steps at ANTs' default settings.

Both see the same scan and the same brain mask: a simulated 1 mm head whose tissue and bias field are known, and a
real 1 mm scan. Bias correction: what is left of field and noise in white matter (coefficient of variation of the ratio to the truth).
Registration (affine): correlation with the template inside its brain. Segmentation: Dice of CSF, GM and WM.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np

THREADS = 2
os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = str(THREADS)


@dataclass
class Way:
    """Seconds of each step, and what came out of it."""

    seconds: dict[str, float] = field(default_factory=dict)
    corrected: Any = None
    warped: Any = None
    labels: Any = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - started


def by_bidsharm(scan: Path, mask: Path, folder: Path, *, registration: str) -> Way:
    """Run the graphs of bidsharm, step by step."""
    import nibabel as nib
    from bidsharm.workflows.preprocess import init_bias_correction_wf, init_template_registration_wf

    from bidsharm.interfaces.ants import ApplyTransforms
    from bidsharm.interfaces.preprocess import PrepareTemplate, SegmentTissue

    way = Way()
    with _inside(folder / 'template'):
        template = PrepareTemplate().run().outputs
    bias = init_bias_correction_wf(omp_nthreads=THREADS)
    bias.base_dir = str(folder)
    bias.inputs.inputnode.in_file, bias.inputs.inputnode.in_mask = str(scan), str(mask)
    with way.step('bias correction'):
        bias.run()
    made = {file.name: file for file in (folder / bias.name / 'apply_field').glob('*.nii')}
    register = init_template_registration_wf(kind=registration, omp_nthreads=THREADS)
    register.base_dir = str(folder)
    register.inputs.inputnode.coarse_brain = str(made['coarse_brain.nii'])
    register.inputs.inputnode.template_coarse = template.coarse_brain
    with way.step('registration'):
        register.run()
    found = folder / register.name / 'register'
    forward, backward = (
        next(found.glob(pattern)) for pattern in ('transformComposite.h5', '*InverseComposite.h5')
    )
    warp = {'dimension': 3, 'interpolation': 'Linear', 'num_threads': THREADS}
    with _inside(folder / 'warp'):
        moved = ApplyTransforms(input_image=str(made['brain.nii']), reference_image=template.brain,
                                transforms=str(forward), **warp).run().outputs.output_image  # fmt: skip
        with way.step('segmentation'):
            priors = ApplyTransforms(input_image=template.priors, reference_image=str(made['mask.nii']), input_image_type=3,
                                     transforms=str(backward), **warp).run().outputs.output_image  # fmt: skip
            for _ in range(2):  # before and after
                segment = SegmentTissue(
                    in_file=str(made['brain.nii']), mask_file=str(made['mask.nii']), priors=priors
                )
                tissue = segment.run().outputs
    way.corrected, way.warped = nib.load(made['preproc.nii']), nib.load(moved)
    way.labels = nib.load(tissue.dseg)
    return way


def by_defaults(scan: Path, mask: Path, template_brain: Path, folder: Path) -> Way:
    """Run antspyx with its default settings: N4 on the head, affine on the brain, Atropos twice."""
    import ants

    way = Way()
    image, brain_mask = ants.image_read(str(scan)), ants.image_read(str(mask))
    template = ants.image_read(str(template_brain))
    with way.step('bias correction'):
        corrected = ants.n4_bias_field_correction(image)
    brain = corrected * brain_mask
    with way.step('registration'):
        moved = ants.registration(template, brain, type_of_transform='Affine', random_seed=1)['warpedmovout']
    with way.step('segmentation'):
        for _ in range(2):
            segmented = ants.atropos(brain, brain_mask, m='[0.2,1x1x1]')['segmentation']
    way.corrected, way.warped, way.labels = (
        _to_nibabel(found, folder / f'{name}.nii')
        for name, found in {'corrected': corrected, 'moved': moved, 'segmented': segmented}.items()
    )
    return way


def _to_nibabel(image: Any, path: Path) -> Any:
    import ants
    import nibabel as nib

    ants.image_write(image, str(path))
    return nib.load(path)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        yield


def quality(way: Way, mask: Any, template: Any, truth: dict[str, Any], *, named: bool) -> dict[str, float]:
    """Return how good the results are, against the truth where there is one."""
    brain = np.asarray(template.dataobj) > 0
    pair = (way.warped.get_fdata()[brain], np.asarray(template.dataobj)[brain])
    scores = {'correlation with the template': float(np.corrcoef(*pair)[0, 1])}
    if not truth:
        return scores
    inside = np.asarray(mask.dataobj) > 0
    white = inside & (truth['tissue'] == 2)
    ratio = way.corrected.get_fdata()[white] / truth['noiseless'][white]
    scores['residual bias and noise in WM (CoV)'] = float(np.std(ratio) / np.mean(ratio))
    labels = _on_grid(way.labels, mask)
    for name, value in {'GM': 1, 'WM': 2, 'CSF': 3}.items():
        # Atropos numbers its classes by brightness; the best match is taken, in its favour.
        codes = (value,) if named else (1, 2, 3)
        scores[f'Dice {name}'] = max(
            _dice((labels == code) & inside, (truth['tissue'] == value) & inside) for code in codes
        )
    return scores


def _on_grid(labels: Any, grid: Any) -> Any:
    from bidsharm.imaging.grids import to_native

    return np.asarray((labels if labels.shape == grid.shape else to_native(labels, grid)).dataobj)


def _dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def simulated(folder: Path, seed: int) -> tuple[Path, Path, dict[str, Any]]:
    """Make one 1 mm head with known tissue."""
    import nibabel as nib

    from bidsharm.simulation.dataset import simulate
    from bidsharm.simulation.presets import PRESETS

    simulate(folder, subjects=1, scanners=PRESETS[:1], resolution=1.0, seed=seed)
    scan, truth = next(folder.glob('sub-*/ses-*/anat/*_T1w.nii.gz')), folder / 'derivatives' / 'truth'
    mask, tissue, noiseless = (
        next(truth.rglob(pattern))
        for pattern in ('*brain_mask.nii.gz', '*_dseg.nii.gz', '*noiseless_T1w.nii.gz')
    )
    return (
        scan,
        mask,
        {'tissue': np.asarray(nib.load(tissue).dataobj), 'noiseless': nib.load(noiseless).get_fdata()},
    )


def real(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Take a real 1 mm scan and its mask by deepbet."""
    from bidsharm.interfaces.preprocess import ConformScan, ExtractBrain

    with _inside(folder):
        scan = next(common.real_data().glob('sub-adi/**/*_T1w.nii.gz'))
        conformed = ConformScan(in_file=str(scan)).run().outputs.out_file
        mask = (
            ExtractBrain(in_file=conformed, name='sub-adi', device='cpu', num_threads=THREADS)
            .run()
            .outputs.out_mask
        )
    return Path(conformed), Path(mask), {}


def compare(name: str, scan: Path, mask: Path, truth: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run all ways on one scan and return one row a way."""
    import nibabel as nib

    from bidsharm.imaging.templates import tissue_priors

    folder.mkdir()
    template, _ = tissue_priors()
    template_file = folder / 'template_brain.nii'
    template.to_filename(template_file)
    grid, rows = nib.load(mask), []
    ways = {
        'ANTs defaults': by_defaults(scan, mask, template_file, folder),
        'bidsharm (affine)': by_bidsharm(scan, mask, folder / 'affine', registration='affine'),
        'bidsharm (SyN)': by_bidsharm(scan, mask, folder / 'syn', registration='syn'),
    }
    whole = sum(ways['ANTs defaults'].seconds.values())
    for label, way in ways.items():
        total = sum(way.seconds.values())
        rows.append({'scan': name, 'way': label, **{f'{step} s': value for step, value in way.seconds.items()}, 'sum s': total,
                     'times faster': whole / total, **quality(way, grid, template, truth, named=label != 'ANTs defaults')})  # fmt: skip
    return rows


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('--seed', type=int, default=7)
    args = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, (scan, mask, truth) in {
            'simulated head, 1 mm': simulated(folder / 'heads', args.seed),
            'sub-adi T1w, 1 mm': real(folder / 'real'),
        }.items():
            rows += compare(name, scan, mask, truth, folder / name.split()[0])
    columns = list(rows[0])
    text = f'{THREADS} threads; both with the same brain mask; wall seconds.\n\n' + common.table(
        [{column: row.get(column) for column in columns} for row in rows]
    )
    common.save(
        'preprocessing',
        title='Preprocessing beside ANTs\u2019 defaults',
        text=text,
        data={'rows': rows},
        seed=args.seed,
    )


if __name__ == '__main__':
    main()
