"""How fine may N4's spline get? Levels against what is left of the field in white matter.

Every level halves the spacing of the spline, from 200 mm. Simulated head: coefficient of variation of the ratio to the
noiseless, unbiased image in white matter. Real scans: coefficient of variation of white matter (by the segmentation of
DERIVATIVES, the output of `participant.py`); lower is flatter.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '2'
REAL = ('sub-adi_T1w', 'sub-forrest02_T1w', 'sub-ms01_ses-1_T1w', 'sub-ms04_ses-1_T1w', 'sub-ms12_ses-2_T1w')


def correct(scan: Path, mask: Path, folder: Path, levels: int) -> tuple[Any, float]:
    """Return the corrected voxels, and the seconds of N4."""
    import nibabel as nib

    from bidsharm.interfaces.ants import N4BiasFieldCorrection
    from bidsharm.interfaces.preprocess import ApplyField, CoarseCopy

    here = Path.cwd()
    os.chdir(folder)
    try:
        copy = CoarseCopy(in_file=str(scan), mask_file=str(mask)).run().outputs
        started = time.perf_counter()
        field = N4BiasFieldCorrection(
            dimension=3, shrink_factor=2, bspline_fitting_distance=200.0, save_bias=True, n_iterations=[50] * levels,
            convergence_threshold=1e-7, num_threads=2, input_image=copy.out_file, mask_image=copy.out_mask,
        ).run().outputs.bias_image  # fmt: skip
        seconds = time.perf_counter() - started
        made = ApplyField(in_file=str(scan), mask_file=str(mask), field_file=field, shift=copy.shift).run()
        return nib.load(made.outputs.out_file).get_fdata(), seconds
    finally:
        os.chdir(here)


def spread(values: Any) -> float:
    return float(values.std() / values.mean())


def inputs(derivatives: Path, folder: Path, seed: int) -> dict[str, tuple[Path, Path, Any, Any]]:
    """Return scan, mask, white matter, and the true image (1 where it is not known)."""
    import nibabel as nib
    from preprocessing import simulated

    from bidsharm.interfaces.preprocess import ConformScan

    scan, mask, truth = simulated(folder / 'heads', seed)
    white = (truth['tissue'] == 2) & (np.asarray(nib.load(mask).dataobj) > 0)
    found: dict[str, tuple[Path, Path, Any, Any]] = {
        'simulated head': (scan, mask, white, truth['noiseless'])
    }
    for name in REAL:
        stem = name.removesuffix('_T1w')
        (folder / name).mkdir()
        os.chdir(folder / name)
        raw = next(common.real_data().rglob(f'{name}.nii.gz'))
        conformed = Path(ConformScan(in_file=str(raw)).run().outputs.out_file)
        for label in ('desc-brain_mask', 'label-WM_probseg'):
            image = nib.as_closest_canonical(nib.load(next(derivatives.rglob(f'{stem}_{label}.nii.gz'))))
            image.to_filename(folder / name / f'{label}.nii')
        white = np.asarray(nib.load(folder / name / 'label-WM_probseg.nii').dataobj) > 0.99
        found[name] = (conformed, folder / name / 'desc-brain_mask.nii', white, np.ones(white.shape))
    return found


def main() -> None:
    import nibabel as nib

    arguments = common.parser(__doc__)
    arguments.add_argument('derivatives', type=Path, help='output of participant.py')
    arguments.add_argument('--seed', type=int, default=7)
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, (scan, mask, white, truth) in inputs(
            args.derivatives.absolute(), folder, args.seed
        ).items():
            row: dict[str, Any] = {
                'scan': name,
                'uncorrected': spread(nib.load(scan).get_fdata()[white] / truth[white]),
            }
            for levels in (1, 2, 3, 4):
                data, seconds = correct(scan, mask, folder, levels)
                row[f'{levels} levels'], row[f'{levels} levels, s'] = (
                    spread(data[white] / truth[white]),
                    seconds,
                )
            rows.append(row)
            print(row, flush=True)
    text = (__doc__ or '').split('\n', 1)[1] + '\n' + common.table(rows)
    common.save('bias_levels', title='Levels of N4', text=text, data={'rows': rows}, seed=args.seed)


if __name__ == '__main__':
    main()
