"""What ``bidsharm-task`` writes: predictions, embeddings and scores as tables with dictionaries, and segmentations as BIDS derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.bids.atomic import write_json, write_text
from bidsharm.bids.dataset import derived_description
from bidsharm.bids.names import file_name
from bidsharm.bids.training_input import TrainingFile
from bidsharm.evaluation.probe import Probe
from bidsharm.evaluation.tasks import Judged, SiteScores
from bidsharm.harmonizers.task import Task
from bidsharm.temporary import atomic_path

#: What the description of the output says of its maker.
GENERATOR = 'Predictions of bidsharm-task'

_WHO = {
    'participant_id': 'Subject.',
    'session_id': 'Session; n/a without sessions.',
    'scan': 'Name of the scan.',
    'site': 'Site of the scan.',
}
_MEASURES = {
    'mae': 'Mean absolute error, in units of the column; mean over people.',
    'bias': 'Mean of prediction less truth; mean over people.',
    'r2': 'Share of the variance that is explained; 1 less the squared error over the variance.',
    'balanced_accuracy': 'Mean recall of the classes that occur.',
    'auc': 'Area under the ROC curve; of three or more classes the mean of each against the rest.',
    'dice': 'Dice overlap, mean over classes and people.',
}


def prepare_out(root: Path, out: Path) -> None:
    """Write what makes the folder a BIDS data set."""
    content = derived_description(
        root, GENERATOR, command='bidsharm-task', usual='predictions', link='preprocessed'
    )
    write_json(out / 'dataset_description.json', content)
    write_text(out / '.bidsignore', '*.html\nmodels\nfolds\ncache\npredictions.*\nembeddings.*\nscores.*\n')
    if not (out / 'README.md').exists():
        write_text(out / 'README.md', '# Predictions\n\nWritten by bidsharm-task; see task.html.\n')


def write_predictions(out: Path, rows: Sequence[Judged], task: Task) -> None:
    """Write ``predictions.tsv`` and its dictionary: a row for each scan."""
    columns: dict[str, str] = {
        **_WHO,
        'fold': 'Part of the people that networks trained on the others predicted; n/a for a model from elsewhere.',
    }
    if task.kind == 'segmentation':
        for name in told(task):
            columns[f'volume_{name}'] = f'Volume of {name}, ml.'
            columns[f'dice_{name}'] = f'Dice overlap of {name} with its label map; n/a without one.'
    else:
        columns['truth'] = f'{task.name}, as participants.tsv has it.'
        columns['predicted'] = f'{task.name}, as predicted.'
        columns |= {f'p_{name}': f'Probability of {name}, from 0 to 1.' for name in task.classes}
    write_tsv(out / 'predictions.tsv', columns, [_prediction_row(row, task) for row in rows])


def told(task: Task) -> list[str]:
    """Return the classes of a segmentation that are told from the background in files."""
    return [name for name, value in zip(task.classes, task.values, strict=True) if value]


def _prediction_row(row: Judged, task: Task) -> list[Any]:
    cells: list[Any] = [*_who(row), row.fold + 1 if row.fold >= 0 else None]
    if task.kind == 'segmentation':
        for name in told(task):
            cells += [row.volumes.get(name), row.dice.get(name)]
        return cells
    return [*cells, row.truth, predicted(row, task), *row.shares]


def predicted(row: Judged, task: Task) -> float | str:
    """Return a prediction: a number, or the likeliest class."""
    return row.value if task.kind == 'regression' else task.classes[int(np.argmax(row.shares))]


def write_embeddings(out: Path, rows: Sequence[Judged], embeddings: NDArray[np.float64]) -> None:
    """Write ``embeddings.tsv`` and its dictionary: the features of each scan by the one model that is kept, shape (rows, E)."""
    columns = {
        **_WHO,
        **{f'e{index}': 'A feature of the network.' for index in range(embeddings.shape[1])},
    }
    write_tsv(
        out / 'embeddings.tsv',
        columns,
        [[*_who(row), *code.tolist()] for row, code in zip(rows, embeddings, strict=True)],
    )


def write_scores(out: Path, scores: Sequence[SiteScores], probe: Probe | None) -> None:
    """Write ``scores.tsv`` and its dictionary: a row for all scans together, and one for each site."""
    names = list(scores[0].measures)
    columns = {
        'site': 'Site; n/a for all of them.',
        'scans': 'Scans.',
        'people': 'People.',
        'known': 'Scans whose truth is known.',
    }
    for name in names:
        what = _MEASURES.get(name) or f'Dice overlap of {name.removeprefix("dice_")}; mean over people.'
        columns |= {name: what, f'{name}_low': f'Lower limit of {name} (95 %).', f'{name}_high': 'Upper limit.'}  # fmt: skip
    columns |= {
        'site_told': 'Share of the scans whose site a linear classifier tells from the features; over all the mean of the sites.',
        'site_told_low': 'Lower limit of site_told (95 %).',
        'site_told_high': 'Upper limit.',
        'site_told_by_chance': 'What site_told is for permuted sites, on average.',
    }
    rows = []
    for row in scores:
        cells: list[Any] = [row.site or None, row.scans, row.people, row.known]
        for name in names:
            one = row.measures[name]
            cells += [one.value, *(one.interval or (None, None))]
        rows.append([*cells, *_told(row.site, probe)])
    write_tsv(out / 'scores.tsv', columns, rows)


def _told(site: str, probe: Probe | None) -> list[float | None]:
    if probe is None:
        return [None] * 4
    if site:
        return [probe.recall.get(site), None, None, None]
    return [probe.accuracy, *(probe.interval or (None, None)), probe.chance]


def write_tsv(path: Path, columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table, and the dictionary of its columns beside it."""
    lines = ['\t'.join(columns), *('\t'.join(_cell(value) for value in row) for row in rows)]
    write_text(path, '\n'.join(lines) + '\n')
    write_json(path.with_suffix('.json'), {name: {'Description': text} for name, text in columns.items()})


def _who(row: Judged) -> list[Any]:
    subject = row.name.split('_', 1)[0]
    return [subject, f'ses-{row.session}' if row.session else None, row.name, row.site]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return 'n/a'
    return f'{value:.6g}' if isinstance(value, float) else ' '.join(str(value).split()) or 'n/a'


@dataclass(frozen=True)
class Made:
    """What is said of a segmentation in its sidecar.

    Parameters
    ----------
    root
        Folder of the preprocessed scans.
    record
        About the method.
    desc
        Entity ``desc`` of the file.
    """

    root: Path
    record: Mapping[str, Any]
    desc: str


def write_dseg(
    out: Path,
    file: TrainingFile,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    task: Task,
    made: Made,
    fold: int,
) -> Path:
    """Write a segmentation on the grid of its scan, with its sidecar.

    Parameters
    ----------
    labels
        Labels 1, 2, ... of the task on the grid of the scan.
    affine
        Of that grid.
    fold
        Of the networks that made it.
    """
    import nibabel as nib

    table = np.array([0, *task.values], np.int32)
    data = table[labels].astype(np.uint8 if max(task.values) < 256 else np.int32)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units('mm')
    visit = f'ses-{file.session}/' if file.session else ''
    entities = {**file.entities, 'desc': made.desc if file.contrast == 'T1w' else file.contrast + made.desc.capitalize()}  # fmt: skip
    path = out / f'sub-{file.entities["sub"]}/{visit}anat/{file_name(entities, "dseg", ".nii.gz")}'
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    write_json(
        path.with_name(path.name.removesuffix('.nii.gz') + '.json'),
        {
            'Description': f'Segmentation by {made.record["Method"]}.',
            'Manual': False,
            'Sources': [f'bids:preprocessed:{file.image.relative_to(made.root).as_posix()}'],
            'Task': {**made.record, 'Fold': fold + 1 if fold >= 0 else None},
        },
    )
    return path


def write_label_table(out: Path, task: Task) -> None:
    """Write ``dseg.tsv``, which names the values of the segmentations."""
    rows = sorted((value, name) for name, value in zip(task.classes, task.values, strict=True) if value)
    write_text(out / 'dseg.tsv', 'index\tname\n' + ''.join(f'{value}\t{_cell(name)}\n' for value, name in rows))  # fmt: skip
