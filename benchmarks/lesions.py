"""Do lesions survive? Contrast of MS lesions to the white matter around them, before and after each classical method.

The scans are skull-stripped, in template space, with a consensus mask of the lesions. A method that learns is fitted on
the scan of the other patient (given twice where it asks for several). Contrast: the difference of the means of lesion and white matter, over the standard
deviation of that white matter (a linear map leaves it as it is). "worst local" is the smallest ratio among single
lesions of at least 0.1 ml.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from classical_real import METHODS as ALL
from scipy import ndimage

#: Two patients are too few for `ravel`.
METHODS = tuple(name for name in ALL if name != 'ravel')

CONTRASTS = ('T1w', 'T2w', 'FLAIR')
MIN_LESION_ML = 0.1


def load_patient(folder: Path, segmented: Sequence[str] = CONTRASTS) -> tuple[dict[str, Any], Any]:
    """Return the scans of one patient by contrast, some of them with tissue, and the lesion mask on the same grid."""
    import nibabel as nib

    from bidsharm.harmonizers.contract import Scan
    from bidsharm.imaging.grids import resample
    from bidsharm.imaging.masks import stripped_support
    from bidsharm.imaging.segmentation import segment
    from bidsharm.imaging.templates import tissue_priors

    lesion_image = nib.load(next(folder.glob('*label-lesion_mask.nii.gz')))
    lesions = np.asarray(lesion_image.dataobj) > 0.5
    _, priors = tissue_priors()
    scans = {}
    for contrast in CONTRASTS:
        file = next(
            path for path in folder.glob(f'*desc-preproc_{contrast}.nii.gz') if '_ce-' not in path.name
        )
        image = nib.load(file)
        data = np.asarray(image.dataobj, dtype=np.float32)
        mask = stripped_support(data, image.affine)
        if mask is None:
            raise SystemExit(f'{file.name} does not look skull-stripped')
        scan = Scan(data, mask, image.affine, contrast, file.name.split('_')[0], 'ms')
        if contrast in segmented:
            prior = np.stack([
                resample(np.asarray(priors.dataobj[..., k], dtype=np.float32), priors.affine, data.shape, image.affine) for k in range(3)
            ])  # fmt: skip
            scan = replace(scan, tissue=segment(data, mask, prior, image.affine).probability)
        scans[contrast] = scan
    return scans, lesions


def surroundings(lesions: Any, scan: Any) -> Any:
    """Return normal-appearing white matter: by the T1w's segmentation, 2 to 12 mm from lesions."""
    away = ndimage.distance_transform_edt(~lesions)
    return (scan.tissue[2] > 0.9) & (away > 2) & (away < 12)


def contrast_of(image: Any, lesion: Any, white: Any) -> float:
    return float((image[lesion].mean() - image[white].mean()) / image[white].std())


def single_lesions(lesions: Any, voxel_ml: float, least_ml: float = MIN_LESION_ML) -> list[Any]:
    labels, count = ndimage.label(lesions)
    sizes = ndimage.sum_labels(lesions, labels, range(1, count + 1)) * voxel_ml
    return [labels == index + 1 for index in range(count) if sizes[index] >= least_ml]


def main() -> None:
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Canonical, Cohort

    common.parser(__doc__).parse_args()
    folders = sorted((common.real_data() / 'derivatives' / 'mslesions').glob('sub-*/anat'))
    patients = [load_patient(folder) for folder in folders]
    rows = []
    for name in METHODS:
        for contrast in CONTRASTS:
            before, after, worst = [], [], []
            for index, (scans, lesions) in enumerate(patients):
                scan, method = scans[contrast], registry.get(name)()
                if method.card.needs_fit:
                    others = [other[contrast] for place, (other, _) in enumerate(patients) if place != index]
                    method.fit(Cohort(others + others[:1]), target=Canonical(), seed=0)
                image = method.harmonize(scan, Canonical()).image
                inside = lesions & scan.mask
                white = surroundings(lesions, scans['T1w']) & scan.mask
                before.append(contrast_of(scan.data, inside, white))
                after.append(contrast_of(image, inside, white))
                voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
                worst += [
                    contrast_of(image, one, white) / contrast_of(scan.data, one, white)
                    for one in single_lesions(inside, voxel_ml)
                    if abs(contrast_of(scan.data, one, white)) > 0.5
                ]
            rows.append({'method': name, 'contrast': contrast, 'before': statistics.mean(before), 'after': statistics.mean(after),
                         'ratio': statistics.mean(a / b for a, b in zip(after, before, strict=True)),
                         'worst local': min(worst) if worst else None, 'lesions': len(worst)})  # fmt: skip
            print(rows[-1], flush=True)
    text = f'{len(patients)} patients.\n{(__doc__ or "").split(chr(10), 1)[1]}\n' + common.table(rows)
    common.save('lesions', title='Lesion contrast before and after', text=text, data={'rows': rows}, seed=0)


if __name__ == '__main__':
    main()
