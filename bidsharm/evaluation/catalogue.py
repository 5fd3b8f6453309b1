"""All measures of an evaluation: what each is called, which direction is better, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal['higher', 'lower', 'one', '']


@dataclass(frozen=True)
class Metric:
    """One measure.

    Parameters
    ----------
    name
        Column of the tables.
    label
        What a reader sees.
    meaning
        One sentence in plain words.
    better
        Whether higher or lower values are better, or values near 1; empty where neither is.
    needs
        What must be there for it.
    unit
        Unit, or empty.
    """

    name: str
    label: str
    meaning: str
    better: Better
    needs: str
    unit: str = ''

    def cost(self, value: float) -> float:
        """Return a number that is lower for better values."""
        if self.better == 'one':
            return abs(value - 1)
        return -value if self.better == 'higher' else value


#: What measures need, in words.
REFERENCE = 'a reference: the truth of simulated heads (--truth), or people who travelled to --target'
TRUTH = 'the truth of simulated heads (--truth, without --target)'
SEGMENTATIONS = 'the scans before (--original)'
LABELS = 'tissue labels that all methods share: --truth, or the scans before (--original)'
TRUE_LABELS = 'tissue labels of --truth'
TRAVELLERS = 'people who were in two or more scanners (--scans)'
SCANNERS = 'two or more scanners (--scans or --site)'
LESIONS = 'lesion masks (--truth)'
SEVERAL = 'three or more people'

_TISSUES = {'csf': 'CSF', 'gm': 'grey matter', 'wm': 'white matter'}


def _of_tissues(
    prefix: str, label: str, meaning: str, better: Better, needs: str, unit: str = ''
) -> tuple[Metric, ...]:
    return tuple(
        Metric(f'{prefix}_{key}', label.format(name), meaning.format(name), better, needs, unit)
        for key, name in _TISSUES.items()
    )


#: Measures of one scan by one method; the table ``scans.tsv``.
SCAN_METRICS: tuple[Metric, ...] = (
    Metric('psnr', 'PSNR', 'Range of the reference over the root mean square error, inside the brain.', 'higher', REFERENCE, 'dB'),
    Metric('psnr_fov', 'PSNR, whole image', 'PSNR over the whole field of view, for comparison with papers only.', 'higher', REFERENCE, 'dB'),
    Metric('ssim', 'SSIM', 'Structural similarity to the reference; a wrong gain or offset counts.', 'higher', REFERENCE),
    Metric('ssim_slices', 'SSIM, slices', 'The same in two dimensions, for comparison with papers only.', 'higher', REFERENCE),
    Metric('mae', 'MAE', 'Mean absolute error over the range of the reference.', 'lower', REFERENCE),
    Metric('nrmse', 'NRMSE', 'Root mean square error over the range of the reference.', 'lower', REFERENCE),
    Metric('pcc', 'Correlation', 'Correlation of intensities with the reference.', 'higher', REFERENCE),
    Metric('gradient_ncc', 'Gradient agreement', 'Correlation of gradients with those of the reference: is the anatomy the same?', 'higher', REFERENCE),
    Metric('wasserstein', 'Wasserstein', 'Distance of the distributions of intensities, over the range of the reference.', 'lower', REFERENCE),
    Metric('js', 'JS divergence', 'Divergence of the histograms of intensities, in bits.', 'lower', REFERENCE),
    Metric('lpips', 'LPIPS', 'Learned perceptual distance of slices to those of the reference.', 'lower', f'{REFERENCE}; and --lpips'),
    Metric('edges_kept', 'Edges in place', 'Agreement of the directions of gradients with the scan before.', 'higher', 'the scan before'),
    Metric('new_edges', 'New edges', 'Share of gradient energy that the scan before does not show.', 'lower', 'the scan before'),
    *_of_tissues('ravd', 'rAVD {}', 'Relative volume difference of {} after and before.', 'lower', SEGMENTATIONS),
    *_of_tissues('dice', 'Dice {}', 'Overlap of {} after and before.', 'higher', SEGMENTATIONS),
    *_of_tissues('jaccard', 'Jaccard {}', 'Overlap of {} after and before, over the union.', 'higher', SEGMENTATIONS),
    *_of_tissues('hausdorff', 'Hausdorff {}', 'Largest distance of the surfaces of {} after and before.', 'lower', SEGMENTATIONS, 'mm'),
    *_of_tissues('hausdorff95', 'Hausdorff 95 {}', '95 % of the distances of the surfaces of {} after and before are smaller.', 'lower', SEGMENTATIONS, 'mm'),
    *_of_tissues('volume', 'Volume {}', 'Volume of {} after.', '', SEGMENTATIONS, 'mL'),
    Metric('lesion_kept', 'Lesion contrast kept', 'Contrast of lesions to their surroundings, after over before.', 'one', f'{LESIONS}; and the scan before'),
    Metric('lesion_dice', 'Lesion Dice', 'Overlap of the lesions that were found with the true ones.', 'higher', f'{LESIONS}; and found ones (label-lesion_mask)'),
    Metric('lesion_f1', 'Lesion F1', 'Lesions that were found, and that are ones.', 'higher', f'{LESIONS}; and found ones (label-lesion_mask)'),
    Metric('lesion_ravd', 'Lesion rAVD', 'Relative difference of the volume of all lesions that were found and the true one.', 'lower', f'{LESIONS}; and found ones (label-lesion_mask)'),
    Metric('lesion_false', 'False lesions', 'Share of the lesions found that have no voxel in common with a true one.', 'lower', f'{LESIONS}; and found ones (label-lesion_mask)'),
    Metric('transfer_dice', 'Transfer', 'Dice (mean of three tissues) of classifiers that were learnt in other scanners.', 'higher', f'{LABELS}; {SCANNERS}'),
    Metric('transfer_gm', 'GM fraction found', 'Share of grey matter that these classifiers find.', '', f'{LABELS}; {SCANNERS}'),
    Metric('identity_error', 'Identity error', 'By how much scans of the target scanner were changed, over their range.', 'lower', 'scans of --target, methods that aim at it, and the scans before'),
    Metric('cycle_error', 'Cycle error', 'How far scans are from themselves after they went to a target and back.', 'lower', 'scans that came back (--returned)'),
    Metric('nll', 'Uncertainty: NLL', 'Negative log-likelihood of the errors under the uncertainty.', 'lower', f'{TRUTH}; and desc-uncertainty images', 'nats'),
    Metric('coverage95', 'Uncertainty: coverage', 'Share of the errors within the interval that should hold 95 %.', '', f'{TRUTH}; and desc-uncertainty images'),
    Metric('ece', 'Uncertainty: calibration error', 'Mean difference of coverage and level.', 'lower', f'{TRUTH}; and desc-uncertainty images'),
    Metric('ause', 'Uncertainty: AUSE', 'How badly the uncertainty orders voxels by their error.', 'lower', f'{TRUTH}; and desc-uncertainty images'),
    Metric('seconds', 'Seconds', 'Time of the harmonizer for this scan.', 'lower', 'records of bidsharm (_qc.json)', 's'),
    Metric('peak_gb', 'Memory', 'Peak of memory of the step that harmonized this scan, without that of a GPU.', 'lower', 'logs of bidsharm (logs/*/resources.tsv)', 'GB'),
)  # fmt: skip

#: Measures of one method over all scans; with those above, averaged by person, the table ``summary.tsv``.
GROUP_METRICS: tuple[Metric, ...] = (
    Metric('transfer_gm_r', 'GM fraction r', 'Correlation of the grey-matter fraction that carried classifiers find with the true one.', 'higher', f'{LABELS}; {SCANNERS}; {SEVERAL}'),
    *_of_tissues('volume_r', 'Volume r {}', 'Correlation of volumes of {} after with the true ones: are people still told apart?', 'higher', f'{TRUE_LABELS}; {SEVERAL}'),
    *_of_tissues('cov', 'CoV {}', 'Spread of volumes of {} over scanners, over their mean.', 'lower', TRAVELLERS),
    *_of_tissues('icc_agreement', 'ICC(2,1) {}', 'Agreement of volumes of {} over scanners.', 'higher', f'{TRAVELLERS}; {SEVERAL}'),
    *_of_tissues('icc_consistency', 'ICC(3,1) {}', 'The same, offsets between scanners aside.', 'higher', f'{TRAVELLERS}; {SEVERAL}'),
    *_of_tissues('scanner_dice', 'Dice {} across scanners', 'Overlap of {} of one person between two scanners.', 'higher', TRAVELLERS),
    Metric('within_between', 'Within over between', 'Distance of scans of one person over that of different people, across scanners.', 'lower', TRAVELLERS),
    Metric('reidentification', 'Re-identification', 'How often the nearest scan from another scanner is of the same person.', 'higher', TRAVELLERS),
    Metric('ffd', 'Filter Fréchet distance', "Distance of sets of slices to those of the target, by a fixed bank of filters of bidsharm's own.", 'lower', REFERENCE),
    Metric('kfd', 'Filter kernel distance', 'The same with a polynomial kernel.', 'lower', REFERENCE),
    Metric('fid', 'FID', 'Fréchet distance of Inception features of slices.', 'lower', f'{REFERENCE}; and --inception'),
    Metric('kid', 'KID', 'Kernel distance of Inception features of slices.', 'lower', f'{REFERENCE}; and --inception'),
    Metric('inception_score', 'Inception score', 'How surely and variedly a network of photographs sorts the slices; says little of brains.', 'higher', f'{REFERENCE}; and --inception'),
    Metric('site_linear', 'Site, linear', 'Balanced accuracy of a linear classifier that guesses the scanner; chance is best.', '', f'{SCANNERS}, two people in each'),
    Metric('site_cnn', 'Site, CNN', 'The same by a small convolutional network.', '', f'{SCANNERS}, two people in each'),
    Metric('age_r', 'Age r', 'Correlation of the grey-matter fraction with age.', '', f'a column of ages; {LABELS}; {SEVERAL}'),
    Metric('group_d', 'Group d', 'Difference of the grey-matter fraction between two groups, in standard deviations.', '', f'a column of groups; {LABELS}; three people in each'),
    *(
        Metric(f'task_{name}{way}', f'Task: {label}{words}', f'{label} of a classifier that tells the classes of --task, tested on {words2}.', 'higher', f'--task, two people in each class{needs}')
        for way, words, words2, needs in (('', '', 'people it has not seen', ''), ('_scanner', ', new scanner', 'people and scanners it has not seen', f'; {SCANNERS}'))
        for name, label in (('accuracy', 'Accuracy'), ('balanced_accuracy', 'Balanced accuracy'), ('precision', 'Precision'), ('recall', 'Recall'), ('f1', 'F1'), ('auc', 'AUC'))
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*SCAN_METRICS, *GROUP_METRICS)}

#: Measures on which methods are compared by tests; the family of Holm's correction.
COMPARED = (
    'psnr', 'ssim', 'mae', 'wasserstein', 'gradient_ncc', 'transfer_dice', 'ravd_gm', 'ravd_wm', 'ravd_csf',
    'lesion_kept', 'new_edges',
)  # fmt: skip

#: Margins below which a mean change counts as no harm (TOST), fixed before any data were seen.
MARGINS = {
    'ravd_gm': 0.05, 'ravd_wm': 0.05, 'ravd_csf': 0.10, 'lesion_kept': 0.10, 'new_edges': 0.05, 'identity_error': 0.01,
}  # fmt: skip
#: What scans before have of measures that compare an image with them: they are not changed, so no test of a difference concerns them.
UNCHANGED = {
    'ravd_gm': 0.0, 'ravd_wm': 0.0, 'ravd_csf': 0.0, 'lesion_kept': 1.0, 'new_edges': 0.0, 'identity_error': 0.0,
}  # fmt: skip
