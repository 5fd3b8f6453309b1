"""A package of somebody else: its method shows the other contrast of the visit, where there is one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bidsharm.harmonizers.contract import Card, Harmonized, Harmonizer, Scan, Target


class Looking(Harmonizer):
    """Give back the first companion in the place of the scan."""

    card: ClassVar[Card] = Card(
        name='looking', title='Looks around', paper='None', targets=('canonical',), companions=True
    )

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Return the companion; a scan that is alone stays as it is."""
        del target
        shown = scan.companions[0] if scan.companions else scan
        image = np.where(shown.mask, shown.data, 0)
        return Harmonized(image, None, {'shown': [other.contrast for other in scan.companions]})
