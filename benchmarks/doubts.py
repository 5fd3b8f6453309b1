"""How often does `isotone` refuse a scan that it should follow, and follow what is no scan of the contrast?

People of anatomies that it was not trained on, in scanners that are drawn at random, as they are made for a training, and as many things that are no scan of the
contrast: brains with tissues in another order, upside down, inverted, noise, bodies that are no brains. The judge says of each how likely it is
strange. For each limit:

- refused: share of the true scans that would only be scaled;
- let through: share of the others that would be followed.

`bidsharm/harmonizers/isotone.py` has the limits that are used (`STRANGEST`).
"""

from __future__ import annotations

from typing import Any

import common
from ceiling import model_of, shipped, strangers

LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)


def rows_of(contrast: str, people: list[Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Return the shares at every limit."""
    import torch

    from bidsharm.training.isotone import try_out
    from bidsharm.training.scans import ScanSource

    model = model_of(contrast)
    tried = try_out(model.reader, ScanSource(people, contrast, seed=seed, scanners=400), count)
    with torch.inference_mode():
        strangeness = torch.sigmoid(model.judge(tried.features, tried.histograms)[:, 2])
    usual, strange = strangeness[~tried.strange], strangeness[tried.strange]
    return [
        {
            'contrast': contrast,
            'limit': limit,
            'refused': float((usual > limit).float().mean()),
            'let through': float((strange <= limit).float().mean()),
        }
        for limit in LIMITS
    ]


def main() -> None:
    arguments = common.parser(__doc__)
    common.add_labels(arguments)
    arguments.add_argument('--people', type=int, default=16)
    arguments.add_argument('--scans', type=int, default=1000, help='of each contrast, half of them strange')
    arguments.add_argument('--seed', type=int, default=2026)
    args = arguments.parse_args()
    people = strangers(common.labels_of(args), args.people, args.seed)
    rows = [row for contrast in shipped() for row in rows_of(contrast, people, args.scans, args.seed)]
    how = f'{len(people)} people, {args.scans} scans of each contrast, half of them strange.'
    common.save(
        'doubts',
        title='When isotone holds back',
        text=common.body(__doc__, how, rows),
        data={'rows': rows},
        seed=args.seed,
    )
    print(common.table(rows))


if __name__ == '__main__':
    main()
