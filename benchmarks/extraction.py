"""Brain extraction by registration (`--brain-extraction ants`) beside deepbet, on every real T1w.

Overlap (Dice) of the two masks, both volumes, and the seconds of the registration; nobody has drawn a true mask, so this
is agreement, not accuracy. DERIVATIVES is the output of `participant.py`, whose masks are deepbet's.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np


def compare(name: str, raw: Path, mask_file: Path, template: Any, folder: Path) -> dict[str, Any]:
    import nibabel as nib
    from bidsharm.workflows.preprocess import EXTRACTION_FIELDS, init_ants_extraction_wf

    from bidsharm.imaging.masks import volume_ml
    from bidsharm.interfaces.preprocess import ConformScan

    folder.mkdir()
    with contextlib.chdir(folder):
        conformed = ConformScan(in_file=str(raw)).run().outputs.out_file
    workflow = init_ants_extraction_wf(omp_nthreads=2)
    workflow.base_dir = str(folder)
    workflow.inputs.inputnode.in_file = conformed
    sources = dict(zip(EXTRACTION_FIELDS, ('coarse_brain', 'mask', 'coarse_head'), strict=True))
    for field, output in sources.items():
        setattr(workflow.inputs.inputnode, field, getattr(template, output))
    started = time.perf_counter()
    workflow.run()
    seconds = time.perf_counter() - started
    found = next((folder / workflow.name / 'warp_mask').glob('*_trans.nii*'))
    ants = np.asarray(nib.load(found).dataobj) > 0.5
    image = nib.as_closest_canonical(nib.load(mask_file))
    deepbet = np.asarray(image.dataobj) > 0
    overlap = 2 * (ants & deepbet).sum() / (ants.sum() + deepbet.sum())
    return {'scan': name, 'Dice': float(overlap), 'deepbet ml': volume_ml(deepbet, image.affine),
            'ANTs ml': volume_ml(ants, image.affine), 'ANTs s': seconds}  # fmt: skip


def main() -> None:
    from bidsharm.interfaces.preprocess import PrepareTemplate

    arguments = common.parser(__doc__)
    arguments.add_argument('derivatives', type=Path, help='output of participant.py')
    args = arguments.parse_args()
    derivatives, rows = args.derivatives.absolute(), []
    with tempfile.TemporaryDirectory() as temporary:
        with contextlib.chdir(temporary):
            template = PrepareTemplate().run().outputs
        for mask in sorted(derivatives.rglob('*_desc-brain_mask.nii.gz')):
            stem = mask.name.removesuffix('_desc-brain_mask.nii.gz')
            if 'space-' in stem:
                continue
            raw = next(common.real_data().glob(f'sub-*/**/{stem}_T1w.nii.gz'))
            rows.append(compare(stem, raw, mask, template, Path(temporary) / stem))
            print(rows[-1], flush=True)
    text = (__doc__ or '').split('\n', 1)[1] + '\n' + common.table(rows)
    common.save(
        'extraction', title='Brain extraction by registration', text=text, data={'rows': rows}, seed=0
    )


if __name__ == '__main__':
    main()
