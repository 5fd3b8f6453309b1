"""``bidsharm-task``: predict something of scans from several sites, from features that shall not tell the site."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Parser, budget, count, setting
from bidsharm.cli.bars import Bars
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode, NothingToDo, UsageError
from bidsharm.settings import CONTRASTS, MAX_SEED

if TYPE_CHECKING:
    from bidsharm.bids.training_input import TrainingFile
    from bidsharm.evaluation.probe import Fold, Probe
    from bidsharm.evaluation.tasks import Judged
    from bidsharm.harmonizers.task import Prediction, Task, TrainedTask
    from bidsharm.harmonizers.training_cache import Prepared
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

#: Names inside the output folder.
MODELS, FOLDS, CACHE = 'models', 'folds', 'cache'


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-task',
        description='Predict age, a diagnosis or a segmentation of scans that bidsharm has preprocessed, from features that shall not tell the site.',
        epilog='Every scan is predicted by networks that have not seen its person; a model that was trained on all of them is OUT/models/NAME. The '
        'same command goes on with a training that was interrupted. More: the page "tasks" of the documentation. Exit codes: 0 done; 1 the training '
        'failed, or scans had to be left out; 2 wrong use; 3 no scans; 78 no such device or model.',
        allow_abbrev=False,
    )
    parser.add_argument('derivatives', metavar='DERIVATIVES', type=Path, help='output folder of bidsharm')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder for predictions, page and model')
    what = parser.add_argument_group('what is predicted')
    what.add_argument('--task', default='', metavar='WHAT', help='a column of participants.tsv, or "segmentation"')  # fmt: skip
    what.add_argument('--kind', choices=('regression', 'classification'), help='of a column (default: by its values)')  # fmt: skip
    what.add_argument('--labels', type=Path, metavar='FOLDER', help='label maps (*_dseg.nii.gz, dseg.tsv) to learn segmentation from (default: the tissues in DERIVATIVES)')  # fmt: skip
    what.add_argument('--classes', nargs='+', default=[], metavar='NAME', help='labels of --labels to learn (default: all)')  # fmt: skip
    what.add_argument('--labelled', nargs='+', default=[], metavar='SITE', help='sites whose answers may be learnt from (default: all)')  # fmt: skip
    scans = parser.add_argument_group('scans')
    scans.add_argument('--images', choices=('preproc', 'harmonized'), default='preproc', help='default: preproc')  # fmt: skip
    scans.add_argument('--contrasts', nargs='+', choices=CONTRASTS, default=['T1w'], help='default: T1w')
    scans.add_argument('--participant-label', nargs='+', default=[], metavar='LABEL', help='subjects (default: all)')  # fmt: skip
    scans.add_argument('--site', default='', metavar='RULE', help='"session" or a column of participants.tsv (default: the sites of that run)')  # fmt: skip
    scans.add_argument('--person', default='', metavar='COLUMN', help='column that says which subjects are one person')  # fmt: skip
    scans.add_argument('--participants', type=Path, metavar='FOLDER', help='folder with participants.tsv')
    how = parser.add_argument_group('how')
    how.add_argument('--harmonizer', default='', metavar='NAME', help='default: unlearning, or that of --model')  # fmt: skip
    how.add_argument('--model', type=Path, metavar='FOLDER', help='predict by what was learnt before, and train nothing')  # fmt: skip
    how.add_argument('--folds', type=count, default=5, metavar='N', help='parts of the people (default: 5)')
    how.add_argument('--preset', choices=('paper', 'tiny'), default='paper', help='default: paper')
    how.add_argument('--set', nargs='+', default=[], type=setting, metavar='KEY=VALUE', help='change settings of the method')  # fmt: skip
    how.add_argument('--budget', type=budget, metavar='N|TIME', help='of each training: steps (20000) or time (90m)')  # fmt: skip
    how.add_argument('--interval', type=count, default=200, metavar='N', help='steps between checkpoints (default: 200)')  # fmt: skip
    how.add_argument('--patience', type=int, default=0, metavar='N', help='end after N intervals without a better validation')  # fmt: skip
    how.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps (default: auto)')
    how.add_argument('--threads', type=count, metavar='N', help='threads')
    how.add_argument('--seed', type=int, default=0, metavar='N', help='default: 0')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end(
        'bidsharm-task',
        lambda: _run(args),
        stopped='stopped; the same command goes on from the last checkpoint.',
    )


@dataclass
class _Work:
    """What the parts of the command hand to each other."""

    args: argparse.Namespace
    method: TrainedTask
    task: Task
    files: dict[str, TrainingFile]
    truth: dict[str, Any]
    prepared: Prepared

    @property
    def volumes(self) -> Sequence[TrainingVolume]:
        return self.prepared.data.volumes


def _run(args: argparse.Namespace) -> ExitCode:
    from bidsharm.bids.dataset import refuse_out
    from bidsharm.bids.task_output import GENERATOR, prepare_out
    from bidsharm.cli.alone import alone_in
    from bidsharm.cli.run import quiet_libraries
    from bidsharm.harmonizers.training_cache import prepare, sketch
    from bidsharm.temporary import swept

    quiet_libraries()
    _check(args)
    files = _files(args)
    loaded = _loaded(args) if args.model else None
    task, files, truth = _asked(args, files, loaded)
    method = loaded or _new(args, task)
    refuse_out(args.derivatives, args.out, GENERATOR)
    if args.model:
        _check_contrasts(method, files)
    else:
        data = sketch(files)
        # What cannot be is told now, not after minutes of preparing.
        _folds(data, args)
        method.check_offers(data, _learnable(args, files, truth), task)
        method.untrained(data, task)
    with alone_in(args.out, 'bidsharm-task'), swept([args.out, args.out / CACHE]), Bars(True) as progress:
        prepare_out(args.derivatives, args.out)
        prepared = prepare(files, method.settings, args.out / CACHE, progress('preparing'))
        if not prepared.data.volumes:
            raise NothingToDo('No scan can be used.', fix=str(prepared.problems[0]) if prepared.problems else '')  # fmt: skip
        work = _Work(args, method, task, {file.name: file for file in files}, truth, prepared)
        page = _predicted(work) if args.model else _learnt(work, progress)
    for problem in prepared.problems:
        print(f'bidsharm-task: left out: {problem}', file=sys.stderr)
    print(page)
    return ExitCode.SCAN_FAILED if prepared.problems else ExitCode.OK


# --- What is asked for ---


def _check(args: argparse.Namespace) -> None:
    import torch

    if not 0 <= args.seed <= MAX_SEED:
        raise UsageError(f'The seed must lie between 0 and {MAX_SEED}.', where='--seed')
    if not args.model and not (args.task or args.labels):
        raise UsageError(
            'A training has to know what to predict.', where='--task', fix='Give a column of participants.tsv, or "segmentation".'
        )  # fmt: skip
    if args.labels and args.task not in ('', 'segmentation'):
        raise UsageError('--labels is for segmentations.', where='--labels', fix='Leave --task or --labels away.')  # fmt: skip
    if args.folds < 2:
        raise UsageError('One fold leaves nobody to judge.', where='--folds', fix='Give 2 or more.')
    for option in ('set', 'labelled', 'kind', 'task'):
        if args.model and getattr(args, option):
            raise UsageError(
                'A model that was learnt before keeps what it was learnt with.', where=f'--{option}', fix='Leave it away.'
            )  # fmt: skip
    if args.threads:
        torch.set_num_threads(args.threads)


def _files(args: argparse.Namespace) -> list[TrainingFile]:
    from bidsharm.bids.training_input import find_training_files

    return find_training_files(
        args.derivatives, contrasts=args.contrasts, site=args.site, participants=args.participants, person=args.person,
        subjects=[label.removeprefix('sub-') for label in args.participant_label], images=args.images,
    )  # fmt: skip


def _asked(
    args: argparse.Namespace, files: list[TrainingFile], loaded: TrainedTask | None
) -> tuple[Task, list[TrainingFile], dict[str, Any]]:
    """Return the task, the scans, and what is true of them by their names."""
    from bidsharm.bids.task_input import OTHER, column_task, label_task, tissue_task

    wanted = loaded.task if loaded else None
    segmentation = wanted.kind == 'segmentation' if wanted else bool(args.labels) or args.task == 'segmentation'  # fmt: skip
    if segmentation and args.labels:
        names = args.classes
        if wanted:
            names = [name for name in wanted.classes if name != OTHER]
        return label_task(files, args.labels, names)
    if segmentation:
        task, truth = tissue_task(files)
        return wanted or task, files, truth if not wanted or wanted == task else {}
    if wanted is None:
        task, truth = column_task(files, args.task, args.kind)
        return task, files, truth
    if not any(wanted.name in file.columns for file in files):
        return wanted, files, {}
    _, truth = column_task(files, wanted.name, wanted.kind)
    unknown = wanted.kind == 'classification'
    return wanted, files, {k: None if unknown and v not in wanted.classes else v for k, v in truth.items()}


def _learnable(args: argparse.Namespace, files: Sequence[TrainingFile], truth: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Return the answers that may be learnt from."""
    from bidsharm.bids.task_input import at_sites

    return {name: value for name, value in at_sites(files, truth, args.labelled).items() if value is not None}


def _new(args: argparse.Namespace, task: Task) -> TrainedTask:
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.execution import resolve_device
    from bidsharm.harmonizers.task import TrainedTask

    name = args.harmonizer or 'unlearning'
    kind = registry.find(name)
    if not issubclass(kind, TrainedTask):
        ours = [n for n in registry.available() if registry.card(n).place == 'task']
        raise UsageError(f'"{name}" predicts nothing.', where='--harmonizer', fix=f'Choose {", ".join(ours)}.')  # fmt: skip
    execution = Execution(device=resolve_device(args.device), seed=args.seed, threads=args.threads or 1)
    return kind(execution, kind.preset(args.preset, task.kind, **dict(args.set)))


def _loaded(args: argparse.Namespace) -> TrainedTask:
    from bidsharm.errors import ConfigurationError
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.execution import resolve_device
    from bidsharm.harmonizers.task import TrainedTask

    execution = Execution(device=resolve_device(args.device), seed=args.seed, threads=args.threads or 1)
    method = bundle.load_any(args.model, execution, name=args.harmonizer or None)
    if not isinstance(method, TrainedTask):
        raise ConfigurationError(
            f'The bundle was made by "{method.card.name}", which predicts nothing.', where=str(args.model)
        )  # fmt: skip
    return method


def _check_contrasts(method: TrainedTask, files: Sequence[TrainingFile]) -> None:
    """Refuse scans of a contrast that the networks have never seen."""
    strange = sorted({file.contrast for file in files} - set(method.contrasts))
    if strange:
        raise UsageError(
            f'The model was trained on {", ".join(method.contrasts)}, and these scans are {", ".join(strange)}.',
            where='--contrasts', fix=f'Give --contrasts {" ".join(method.contrasts)}.',
        )  # fmt: skip


# --- Training and predicting ---


def _folds(data: TrainingSet, args: argparse.Namespace) -> list[Fold]:
    """Return the folds of people."""
    from bidsharm.evaluation.probe import person_folds

    sites, people = [one.site for one in data.volumes], [one.person for one in data.volumes]
    return person_folds(sites, people, count=args.folds, seed=args.seed)


def _learnt(work: _Work, progress: Any) -> Path:
    """Train on each fold and predict the others, then train on all; return the page."""
    import numpy as np

    from bidsharm.evaluation.tasks import embedding_probe
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.cross_fitting import Fitting, cross_fitted
    from bidsharm.training.options import Budget, Running

    args, data = work.args, work.prepared.data
    learnt = _learnable(args, list(work.files.values()), work.truth)
    work.method.check_offers(data, learnt, work.task)
    sites, people = [one.site for one in data.volumes], [one.person for one in data.volumes]
    folds = _folds(data, args)
    running = Running(
        device=work.method.execution.device, interval=args.interval, patience=args.patience, seed=args.seed,
        budget=args.budget or Budget(steps=work.method.settings.steps),
    )  # fmt: skip
    settings, execution = work.method.settings, work.method.execution
    fitting = Fitting(
        lambda: type(work.method)(execution, settings), work.task, learnt, {name: file.key for name, file in work.files.items()},
        args.out / FOLDS, running,
    )  # fmt: skip
    crossed = cross_fitted(fitting, data, folds, progress)
    probe = embedding_probe(crossed.of_fold, sites, people, folds=args.folds, seed=args.seed)
    work.method = fitting.fitted(data, progress('all'))
    bundle.save_anew(work.method, args.out / MODELS / work.method.card.name)
    embeddings = np.array([work.method.predict(one).embedding for one in data.volumes], float)
    return _written(work, crossed.predictions, crossed.fold, probe, embeddings)


def _predicted(work: _Work) -> Path:
    """Predict by a model from elsewhere; return the page."""
    import numpy as np

    from bidsharm.evaluation.probe import site_probe

    found = [work.method.predict(one) for one in work.volumes]
    embeddings = np.array([one.embedding for one in found], float)
    sites, people = [one.site for one in work.volumes], [one.person for one in work.volumes]
    probe = site_probe(embeddings, sites, people, seed=work.args.seed) if len(set(sites)) > 1 else None
    return _written(
        work,
        found,
        [-1] * len(found),
        probe if probe and probe.accuracy is not None else None,
        embeddings,
    )


# --- Writing ---


def _written(work: _Work, found: Sequence[Prediction], fold: Sequence[int], probe: Probe | None, embeddings: Any) -> Path:  # fmt: skip
    """Write segmentations, tables and the page."""
    from bidsharm.bids import task_output as output
    from bidsharm.evaluation.tasks import scores_by_site

    out, task = work.args.out, work.task
    rows = [_judged(work, one, said, number) for one, said, number in zip(work.volumes, found, fold, strict=True)]  # fmt: skip
    if task.kind == 'segmentation':
        output.write_label_table(out, task)
        for one, said, number in zip(work.volumes, found, fold, strict=True):
            _write_dseg(work, one, said, number)
    classes = output.told(task) if task.kind == 'segmentation' else task.classes
    scores = scores_by_site(rows, task.kind, classes, seed=work.args.seed)
    output.write_predictions(out, rows, task)
    output.write_embeddings(out, rows, embeddings)
    output.write_scores(out, scores, probe)
    return _page(work, rows, scores, classes, probe, embeddings)


def _judged(work: _Work, one: TrainingVolume, said: Prediction, fold: int) -> Judged:
    import numpy as np

    from bidsharm.evaluation.tasks import Judged

    task, truth = work.task, work.truth.get(one.name)
    dice: dict[str, float] = {}
    volumes: dict[str, float] = {}
    if said.labels is not None:
        ml = work.method.settings.voxel_mm**3 / 1000
        for label, (name, value) in enumerate(zip(task.classes, task.values, strict=True), start=1):
            if not value:
                continue
            mine = said.labels == label
            volumes[name] = float(mine.sum() * ml)
            if truth is not None and one.tissue is not None:
                theirs = np.asarray(one.tissue) == label
                total = mine.sum() + theirs.sum()
                dice[name] = float(2 * (mine & theirs).sum() / total) if total else float('nan')
        truth = None
    shares = () if said.shares is None else tuple(float(share) for share in said.shares)
    return Judged(one.name, one.person, one.session, one.site, fold, truth, said.value, shares, dice, volumes)


def _write_dseg(work: _Work, one: TrainingVolume, said: Prediction, fold: int) -> None:
    import numpy as np

    from bidsharm.bids.task_output import Made, write_dseg
    from bidsharm.harmonizers.training_cache import world_of
    from bidsharm.harmonizers.training_data import common_frame, resampled_labels
    from bidsharm.imaging.grids import load_checked

    file, settings = work.files[one.name], work.method.settings
    image = load_checked(file.image)
    x, y, z = image.shape
    assert said.labels is not None
    world = world_of(file, settings, work.args.out / CACHE)
    back = np.linalg.inv(world) @ common_frame(settings.voxel_mm).affine
    labels = resampled_labels(said.labels, back, (x, y, z), image.affine)
    desc = ''.join(part.capitalize() if i else part for i, part in enumerate(work.method.card.name.split('-')))  # fmt: skip
    write_dseg(
        work.args.out,
        file,
        labels,
        image.affine,
        work.task,
        Made(work.args.derivatives, _record(work), desc),
        fold,
    )


def _record(work: _Work) -> dict[str, Any]:
    """Return what sidecars and page say of the method."""
    from bidsharm import __version__

    card = work.method.card
    return {
        'Method': card.name, 'Paper': f'{card.paper} {f"doi:{card.doi}" if card.doi else ""}'.strip(), 'Fidelity': card.fidelity,
        'Task': work.task.name, 'Images': work.args.images, 'TrainedSites': list(work.method.sites or work.prepared.data.sites),
        'LearntFrom': list(work.method.labelled_sites), 'Settings': asdict(work.method.settings), 'Seed': work.args.seed,
        'Version': __version__,
    }  # fmt: skip


def _page(work: _Work, rows: Sequence[Judged], scores: Any, classes: Sequence[str], probe: Probe | None, embeddings: Any) -> Path:  # fmt: skip
    from bidsharm.reports.facts import facts_of
    from bidsharm.reports.task import write_task_report

    count = len(work.prepared.problems)
    return write_task_report(
        work.args.out / 'task.html', rows, scores, kind=work.task.kind, task=work.task.name, classes=classes, method=work.method.card.name,
        probe=probe, embeddings=embeddings, held_out=not work.args.model, labelled=work.method.labelled_sites,
        warnings=[f'{count} scans could not be used; the output of the command names them.'] if count else [],
        provenance=facts_of(_record(work)),
    )  # fmt: skip


if __name__ == '__main__':
    sys.exit(main())
