"""Do simulated scans look like real ones? Tissue peaks, noise and histograms, both by the same pipeline.

REAL is the output of `participant.py`; SIMULATED the output of `bidsharm` on a data set of `bidsharm-simulate`. Everything is read
from the QC records, before harmonization. Peaks are those of the segmentation, relative to white matter. The picture shows
the intensities inside the brain, relative to the 90th percentile of each scan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import numpy as np

CONTRASTS = ('T1w', 'T2w', 'FLAIR', 'PDw')
#: Title of each column, and how it is had from the measures of a record.
COLUMNS: dict[str, Any] = {
    'GM over WM': lambda m: m['peak_gm'] / m['peak_wm'],
    'CSF over WM': lambda m: m['peak_csf'] / m['peak_wm'],
    'CNR of GM and WM': lambda m: m['cnr_gm_wm'],
    'CJV': lambda m: m['cjv'],
    'SNR of WM': lambda m: m['snr_wm'],
}
PICTURE = Path(__file__).parent.parent / 'docs' / 'images' / 'simulated_real.webp'


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the QC records of an output folder."""
    files = sorted(folder.glob('sub-*/**/*_qc.json'))
    return [json.loads(file.read_text()) for file in files]


def compare(
    contrast: str, real: list[dict[str, Any]], simulated: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return median and range of each column for real and simulated scans of one contrast."""
    rows = []
    for name, scans in (('real', real), ('simulated', simulated)):
        chosen = [scan['measures']['before'] for scan in scans if scan['contrast'] == contrast]
        if not chosen:
            continue
        row: dict[str, Any] = {'contrast': contrast, 'scans': f'{len(chosen)} {name}'}
        for title, measure in COLUMNS.items():
            values = np.array([measure(item) for item in chosen])
            row[title] = f'{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})'
        rows.append(row)
    return rows


def draw(real: list[dict[str, Any]], simulated: list[dict[str, Any]]) -> None:
    """Draw the densities of all scans, a panel for each contrast."""
    shown = [
        name
        for name in CONTRASTS
        if any(s['contrast'] == name for s in real) and any(s['contrast'] == name for s in simulated)
    ]
    figure, panels = common.pyplot().subplots(1, len(shown), figsize=(3.6 * len(shown), 2.8), squeeze=False)
    grid = np.linspace(0, 1.6, 161)
    for contrast, panel in zip(shown, panels[0], strict=True):
        for scans, colour, label in ((real, '#555555', 'real'), (simulated, '#d9480f', 'simulated')):
            chosen = [scan for scan in scans if scan['contrast'] == contrast]
            for index, scan in enumerate(chosen):
                quantiles = np.asarray(scan['quantiles']['before'], dtype=float)
                share = np.interp(grid, quantiles / quantiles[90], np.linspace(0, 1, 101))
                density = np.convolve(np.gradient(share, grid), np.ones(7) / 7, mode='same')
                panel.plot(
                    grid, density, color=colour, lw=0.9, alpha=0.7, label=label if index == 0 else None
                )
        panel.set(title=contrast, xlabel='intensity over 90th percentile', yticks=[])
        panel.spines[['top', 'right', 'left']].set_visible(False)
    panels[0][0].legend(frameon=False)
    common.keep_picture(figure, PICTURE)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('real', type=Path, help='output of participant.py')
    arguments.add_argument('simulated', type=Path, help='output of bidsharm on simulated heads')
    args = arguments.parse_args()
    real, simulated = records(args.real.absolute()), records(args.simulated.absolute())
    rows = [row for contrast in CONTRASTS for row in compare(contrast, real, simulated) if simulated]
    draw(real, simulated)
    text = (__doc__ or '').split('\n', 1)[1] + '\nMedian (range).\n\n' + common.table(rows)
    common.save('simulated_real', title='Simulated beside real scans', text=text, data={'rows': rows}, seed=3)
    print(text)


if __name__ == '__main__':
    main()
