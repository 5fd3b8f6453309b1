"""How far could a smooth gain and one increasing curve go, in each contrast?

People of anatomies that `isotone` was not trained on, in scanners that are drawn at random, at 2 mm, as they are made for a training: with
residues of bias correction, tone curves and strange fluid. Each scan is mapped to the canonical contrast, and compared with the truth inside the brain without noise and blur
(PSNR over the 0.5 to 99.5 % range of the truth):

- robust: the 90th percentile becomes that of the truth;
- curve: the one increasing curve that comes nearest to the truth (isotonic regression), the gain left as it is;
- gain and curve: the same when the true gain is removed before;
- isotone: what the network makes of the noisy scan, where there is a model for the contrast.

What is left after "gain and curve" hardly any map of this kind can reach: tissues whose order of brightness is another one in the canonical scanner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from train_isotone import HELD_OUT

Values = NDArray[np.float64]


def psnr(image: Values, truth: Values) -> float:
    """Return the PSNR in dB over the usual range of the truth."""
    span = float(np.subtract(*np.quantile(truth, [0.995, 0.005])))
    return float(-10 * np.log10(np.mean((image - truth) ** 2) / span**2))


def nearest(values: Values, truth: Values) -> Values:
    """Return values under the increasing curve that brings them nearest to the truth."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(values)
    image = np.empty_like(truth)
    image[order] = isotonic_regression(truth[order]).x
    return image


def measured(scan: Any, model: Any) -> dict[str, float]:
    """Return the PSNR of every map of one scan."""
    inside = scan.true_mask
    truth, clean, log_gain = (
        part[inside].double().numpy() for part in (scan.canonical, scan.clean, scan.log_gain)
    )
    plain = clean / np.exp(log_gain)
    found = {
        'robust': psnr(clean / np.quantile(clean, 0.9) * np.quantile(truth, 0.9), truth),
        'curve': psnr(nearest(clean, truth), truth),
        'gain and curve': psnr(nearest(plain, truth), truth),
    }
    if model is not None:
        found['isotone'] = psnr(harmonized(scan, model)[inside.numpy()], truth)
    return found


def harmonized(scan: Any, model: Any) -> Values:
    """Return what the network makes of a scan: its style is read from the noisy values, and applied to those without noise."""
    import torch

    from bidsharm.imaging.lowres import SHAPE, LowResolution
    from bidsharm.nn import isotone as parts

    seen = LowResolution(scan.values.float().numpy(), scan.voxels.numpy(), SHAPE, np.eye(4))
    style = model.understand(seen)
    places = parts.places_of(scan.voxels, SHAPE).float()
    gain = parts.sample_field(torch.from_numpy(style.log_gain)[None, None].float(), places)[0, 0]
    return np.asarray(style.canonical(scan.clean.double().numpy(), gain.double().numpy()))


def strangers(labels: Path, count: int, seed: int) -> list[Any]:
    """Return people of the anatomies that `isotone` was not trained on."""
    from bidsharm.training.brains import draw_brains

    return list(draw_brains([labels / f'{name}.nii.gz' for name in HELD_OUT], count, seed=seed))


def model_of(contrast: str) -> Any:
    """Return the model that ships for a contrast; None where there is none."""
    from bidsharm.harmonizers.bundle import read_arrays
    from bidsharm.harmonizers.isotone import WEIGHTS
    from bidsharm.nn.isotone_model import Model

    folder = WEIGHTS / contrast
    return Model.from_arrays(read_arrays(folder)) if folder.is_dir() else None


def shipped() -> list[str]:
    """Return the contrasts that a model ships for."""
    from bidsharm.harmonizers.isotone import WEIGHTS

    return sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir())


def main() -> None:
    arguments = common.parser(__doc__)
    common.add_labels(arguments)
    arguments.add_argument('--people', type=int, default=16)
    arguments.add_argument('--scans', type=int, default=64, help='of each contrast')
    arguments.add_argument('--seed', type=int, default=2026)
    args = arguments.parse_args()
    from bidsharm.settings import CONTRASTS
    from bidsharm.training.scans import ScanSource

    people = strangers(common.labels_of(args), args.people, args.seed)
    rows = []
    for contrast in CONTRASTS:
        source, model = ScanSource(people, contrast, seed=args.seed, scanners=300), model_of(contrast)
        found = [measured(source.draw(), model) for _ in range(args.scans)]
        row: dict[str, Any] = {'contrast': contrast}
        for name in ('robust', 'curve', 'gain and curve', 'isotone'):
            values = [one[name] for one in found if name in one]
            row[name] = float(np.mean(values)) if values else None
        rows.append(row)
        print(row, flush=True)
    how = f'{len(people)} people, {args.scans} scans of each contrast. PSNR in dB.'
    text = common.body(__doc__, how, rows)
    common.save(
        'ceiling', title='How far a gain and one curve can go', text=text, data={'rows': rows}, seed=args.seed
    )


if __name__ == '__main__':
    main()
