"""Which real scans does `isotone` follow, under their own name and under a wrong one?

DERIVATIVES is the output of `participant.py` (only its preprocessing is used). Every scan is given to the model of every contrast. Per model
and true contrast:

- followed: scans that the network is used for; under a wrong name none should be;
- strangeness: the probability that a scan is no scan of the contrast, the smallest and the largest;
- error: the expected error over that of robust scaling, the smallest and the largest.

`bidsharm/harmonizers/isotone.py` has the limits (`STRANGEST`, `CLEARLY_BETTER`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from ceiling import shipped
from classical_real import load_scan, subject


def row_of(method: Any, scans: list[Any], name: str) -> dict[str, Any]:
    """Return what the model of a contrast does with scans of one true contrast."""
    from bidsharm.harmonizers.contract import Canonical

    said = [method.harmonize(replace(scan, contrast=name), Canonical()).details for scan in scans]
    doubts = [details['strangeness'] for details in said]
    errors = [details['expected_error'] / details['expected_error_robust'] for details in said]
    return {
        'scans': scans[0].contrast,
        'given as': name,
        'followed': f'{sum(details["way"] == "network" for details in said)} of {len(said)}',
        'least strangeness': min(doubts),
        'most strangeness': max(doubts),
        'least error': min(errors),
        'most error': max(errors),
    }


def main() -> None:
    from bidsharm.harmonizers import registry

    arguments = common.parser(__doc__)
    arguments.add_argument('derivatives', type=Path)
    root = arguments.parse_args().derivatives.absolute()
    method = registry.get('isotone')()
    scans = {
        contrast: [load_scan(qc) for qc in sorted(root.rglob(f'*_desc-{contrast}_qc.json'))]
        for contrast in shipped()
    }
    rows = [row_of(method, some, name) for some in scans.values() for name in scans]
    people = {subject(scan) for some in scans.values() for scan in some}
    common.save(
        'real_doubts',
        title='Which real scans isotone follows',
        text=common.body(__doc__, f'The preprocessed scans of {len(people)} people.', rows),
        data={'rows': rows},
        seed=0,
    )
    print(common.table(rows))


if __name__ == '__main__':
    main()
