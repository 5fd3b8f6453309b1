"""From settings to work: which method, which target, which scans, and which of them are done already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bidsharm.workflows.base import Options, ScanPlan
from bidsharm.workflows.clusters import devices
from bidsharm.workflows.engine import load_plugin
from bidsharm.workflows.harmonize import Method

from bidsharm.bids.acquisition import read_acquisition
from bidsharm.bids.derivatives import Precomputed, check_folders, find_precomputed
from bidsharm.bids.handoff import handed_off, handoff_files
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.bids.query import Selection
from bidsharm.bids.resume import is_complete
from bidsharm.bids.sidecars import space_specs
from bidsharm.errors import ConfigurationError, NotServed, ScanError, UsageError
from bidsharm.evaluation.verdict import parse_thresholds
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import (
    NEED_PHRASES,
    Acquisition,
    Card,
    Cohort,
    Execution,
    Harmonizer,
    Reference,
)
from bidsharm.imaging.grids import load_checked, open_image
from bidsharm.imaging.templates import BUNDLED, Space, Template, find_template, parse_space
from bidsharm.settings import ACQUISITION, CONTRASTS, Settings


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first voxel is read.

    Parameters
    ----------
    selection
        Scans of the run.
    method
        The harmonizer; its bundle may still have to be learnt.
    options
        How the graphs work.
    spaces
        Output spaces.
    fit_scans
        Scans that the target is learnt from; empty when none are needed.
    everyone
        Scans of the whole data set, among which ``fit_scans`` find their anchors.
    acquisition
        Acquisition parameters that a trained method still has to aim at.
    """

    selection: Selection
    method: Method
    options: Options
    spaces: tuple[Space, ...]
    fit_scans: tuple[ScanFile, ...] = ()
    everyone: Selection | None = None
    acquisition: Acquisition | None = None

    def fit_anchor(self, scan: ScanFile) -> ScanFile:
        """Return the scan that one of ``fit_scans`` follows, the same whatever subset is run."""
        known = self.everyone or self.selection
        return known.anchor(scan) if scan in known.scans else scan  # a reference image follows nothing


def make_plan(settings: Settings, selection: Selection, *, everyone: Selection | None = None) -> Plan:
    """Resolve method, target, device and templates.

    Parameters
    ----------
    settings
        Settings of the run.
    selection
        Scans of the run.
    everyone
        Scans of the whole data set, from which targets are learnt; the same whatever subset is run.

    Raises
    ------
    ConfigurationError
        For a device, template or bundle that is not there.
    UsageError
        For a target that cannot be had.
    """
    card = registry.get(settings.harmonizer).card
    plugin = load_plugin(settings.use_plugin)
    device, extraction_device = devices(settings, card, plugin)
    spaces = tuple(dict.fromkeys(parse_space(text) for text in settings.output_spaces))
    templates = tuple(
        find_template(space, offline=settings.offline)
        for space in spaces
        if space.name not in ('native', 'T1w')
    )
    check_folders(settings.derivatives)
    parse_thresholds(settings.qc_thresholds)  # a wrong name ends the run here, not after the first scan
    execution: dict[str, Any] = {
        'device': device, 'seed': settings.random_seed,
        'oom_fallback': settings.oom_fallback, 'guard': settings.guard,
    }  # fmt: skip
    method = Method(
        name=settings.harmonizer,
        card=card.to_dict(),
        execution=execution,
        memory_gb=card.memory_gb,
        weights_digest=registry.get(settings.harmonizer).weights_digest(),
    )
    fit_scans: tuple[ScanFile, ...] = ()
    acquisition = None
    if settings.model and settings.target.startswith(ACQUISITION):
        method, acquisition = _at_acquisition(method, settings, card)
        served = {acquisition.contrast}
    elif settings.model:
        method, served, fit_scans = _with_model(method, settings, card, everyone or selection)
    else:
        target, fit_scans = resolve_target(settings, card, everyone or selection)
        method = replace(method, target=target)
        served = {scan.suffix for scan in fit_scans}
    selection = _with_contrasts(selection, card, served, method.target_label)
    options = Options(
        brain_extraction=settings.brain_extraction, skull_strip=settings.skull_strip,
        registration=settings.registration, device=extraction_device, omp_nthreads=settings.omp_nthreads,
        sloppy=settings.sloppy, seed=settings.random_seed, templates=templates,
        t1w_space=any(space.name == 'T1w' for space in spaces),
        thresholds=settings.qc_thresholds, gpu_plugin_args=plugin[2] if plugin else None,
    )  # fmt: skip
    return Plan(selection, method, options, spaces, fit_scans, everyone or selection, acquisition)


def _with_model(
    method: Method, settings: Settings, card: Card, everyone: Selection
) -> tuple[Method, set[str], tuple[ScanFile, ...]]:
    """Return the method with the bundle of ``--model``, the contrasts that it serves, and the scans that another target is learnt from."""
    method, loaded = _loaded(method, settings)
    _, learnt = loaded.state()
    kind, label = str(learnt.get('target_kind') or 'canonical'), str(learnt.get('target') or 'canonical')
    # A bundle knows the reference image that it was learnt from by its file name.
    asked = Reference(settings.target).label if kind == 'reference' else settings.target
    served = {str(contrast) for contrast in learnt.get('contrasts', ())}
    if settings.target != 'canonical' and label not in (settings.target, asked):
        if loaded.aims_anew():
            aimed, scans = resolve_target(settings, card, everyone, with_model=True)
            scans = tuple(scan for scan in scans if scan.suffix in served)
            return replace(method, target=aimed), served, scans
        raise UsageError(
            f'The model was learnt for the target "{label}", not "{settings.target}".', where='--target',
            fix='Leave --target away, or give another --model.',
        )  # fmt: skip
    target = f'site:{label}' if kind == 'site' else label
    if 'units' in learnt:  # a trained method may have seen fewer contrasts at the target than it knows
        served &= set(learnt['units'])
    return replace(method, target=target), served, ()


def _loaded(method: Method, settings: Settings) -> tuple[Method, Harmonizer]:
    """Return the method with the bundle of ``--model``, and what is in that; a broken one ends the run here, not hours later."""
    from bidsharm.harmonizers import bundle

    folder = find_model(settings)
    loaded = bundle.load(folder, Execution(**method.execution), name=method.name)
    return replace(method, model_dir=str(folder), model_digest=bundle.digest(folder)), loaded


def _at_acquisition(method: Method, settings: Settings, card: Card) -> tuple[Method, Acquisition]:
    """Return the method with the bundle of ``--model``, and the acquisition parameters that it is going to aim at.

    Raises
    ------
    UsageError
        If it cannot.
    """
    if 'acquisition' not in card.targets:
        raise _cannot_aim(card, 'acquisition')
    target = read_acquisition(Path(settings.target.removeprefix(ACQUISITION)))
    method, loaded = _loaded(method, settings)
    loaded.fit(Cohort(()), target=target)  # refuses what it cannot aim at
    return replace(method, target=target.label), target


def find_model(settings: Settings) -> Path:
    """Return the folder of ``--model``: a path, or a name looked up in ``--weights-dir``.

    Raises
    ------
    ConfigurationError
        If there is no such folder.
    """
    given = Path(str(settings.model))
    places = [given.absolute(), *([settings.weights_dir / given.name] if settings.weights_dir else [])]
    for place in places:
        if place.is_dir():
            return place
    packed = next((place for place in places if place.is_file()), None)
    if packed is not None:
        raise ConfigurationError(
            'This is a file, not the folder of a model bundle.', where=f'--model {packed}',
            fix='If bidsharm-models export wrote it, unpack it first: bidsharm-models import FILE.tar FOLDER',
        )  # fmt: skip
    raise ConfigurationError(
        'The model bundle was not found.', where=f'--model {given}', fix='Give its folder, or --weights-dir.'
    )


def resolve_target(
    settings: Settings, card: Card, everyone: Selection, *, with_model: bool = False
) -> tuple[str, tuple[ScanFile, ...]]:
    """Return the target as the nodes know it, and the scans that it must be learnt from.

    ``--target`` is ``canonical``, the label of a site of the data set, or a file; acquisition parameters are a target of trained models only. The scans are chosen by
    name, the same for every job: at most ``--target-scans`` per contrast, spread over the sites in turn.

    Raises
    ------
    UsageError
        If it is neither, or the method cannot aim at it.
    """
    if 'weights' in card.needs_apply and not with_model and settings.target == 'canonical':
        raise _untrained(card)
    text, found = settings.target, 0
    if text.startswith(ACQUISITION):
        raise _untrained(card) if 'acquisition' in card.targets else _cannot_aim(card, 'acquisition')
    if text == 'canonical':
        kind, target = 'canonical', 'canonical'
        scans = _spread(everyone.scans, settings.target_scans) if 'cohort' in card.needs_fit else ()
        found = len(scans)
        # A contrast with a single scan has no common scale; the others go on without it.
        count = Counter(scan.suffix for scan in scans)
        scans = tuple(scan for scan in scans if count[scan.suffix] > 1)
    elif text in (sites := sorted({scan.site for scan in everyone.scans})):
        kind, target = 'site', f'site:{text}'
        scans = _spread([scan for scan in everyone.scans if scan.site == text], settings.target_scans)
    elif Path(text).is_file():
        _check_reference(Path(text))
        # Not where a link leads: in an annex the name of the image is that of the link.
        kind, target = 'reference', f'reference:{Path(text).absolute()}'
        scans = (_reference_scan(Path(text).absolute()),)
    else:
        raise UsageError(
            f'"{text}" is neither a site of this data set nor a file.',
            where='--target',
            fix=f'Sites: {", ".join(sites)}. Or "canonical", or the path of a reference image.',
        )
    if kind not in card.targets:
        raise _cannot_aim(card, kind)
    if kind == 'canonical' and 'cohort' in card.needs_fit and not scans:
        instead = (
            'Give --target a site or a reference image, or choose' if 'site' in card.targets else 'Choose'
        )
        raise UsageError(
            f'{card.name} needs {NEED_PHRASES["cohort"]}, and there is only {found}.',
            where='--harmonizer',
            fix=f'{instead} one of: {", ".join(_without_cohort())}.',
        )
    if 'weights' in card.needs_apply and not with_model:
        raise _untrained(card)
    return target, tuple(scans)


def _cannot_aim(card: Card, kind: str) -> UsageError:
    return UsageError(
        f'{card.name} cannot aim at {"an" if kind == "acquisition" else "a"} {kind} target.', where='--target',
        fix=f'It can: {", ".join(card.targets)}.',
    )  # fmt: skip


def _untrained(card: Card) -> ConfigurationError:
    return ConfigurationError(
        f'{card.name} needs {NEED_PHRASES["weights"]}.', where='--model',
        fix=f'Train one: bidsharm-train {card.name} DERIVATIVES OUT, then --model OUT/model.',
    )  # fmt: skip


def _without_cohort() -> list[str]:
    return registry.could_run(frozenset({'tissue'}))


def _spread(scans: Sequence[ScanFile], most: int) -> tuple[ScanFile, ...]:
    """Choose at most ``most`` scans of each contrast, taking the sites in turn, one scan a subject first."""
    chosen: list[ScanFile] = []
    for contrast in dict.fromkeys(scan.suffix for scan in scans):
        by_site: dict[str, list[ScanFile]] = {}
        for scan in sorted((s for s in scans if s.suffix == contrast), key=lambda s: s.name):
            by_site.setdefault(scan.site, []).append(scan)
        queues = [_subjects_in_turn(group) for group in by_site.values()]
        picked: list[ScanFile] = []
        while queues and len(picked) < most:
            for queue in list(queues):
                if not queue:
                    queues.remove(queue)
                elif len(picked) < most:
                    picked.append(queue.pop(0))
        chosen += picked
    return tuple(chosen)


def _subjects_in_turn(scans: Sequence[ScanFile]) -> list[ScanFile]:
    seen: dict[str, int] = {}
    ranked = []
    for scan in scans:
        rank = seen.get(scan.subject, 0)
        seen[scan.subject] = rank + 1
        ranked.append((rank, scan))
    return [scan for _, scan in sorted(ranked, key=lambda item: (item[0], item[1].name))]


def _check_reference(path: Path) -> None:
    """End the run here for what is no image, not after hours."""
    try:
        load_checked(path)
    except ScanError as error:
        raise UsageError(
            f'The reference image cannot be used: {error.what}', where=f'--target {path}'
        ) from None


def _reference_scan(path: Path) -> ScanFile:
    end = path.name.split('.', 1)[0].rsplit('_', 1)[-1]  # names of no data set may end so, too
    suffix = end if end in CONTRASTS else 'T1w'
    return ScanFile(path, {'sub': 'reference'}, suffix, path.parent, site='reference')


def _with_contrasts(selection: Selection, card: Card, served: set[str], target: str) -> Selection:
    """Leave out contrasts that the method or the target (an empty set: all are served) cannot serve."""
    kept, left_out = [], list(selection.left_out)
    for scan in selection.scans:
        if card.contrasts and scan.suffix not in card.contrasts:
            reason = f'{card.name} does not handle {scan.suffix}.'
        elif served and scan.suffix not in served:
            reason = f'The target {target} offers no {scan.suffix}.'
        else:
            kept.append(scan)
            continue
        left_out.append(NotServed(reason, where=scan.name, fix='Choose --contrasts, or another target.'))
    if not kept:
        if refused := [error for error in left_out if not isinstance(error, NotServed)]:
            raise refused[0]
        raise UsageError(left_out[-1].what if left_out else 'No scan is left.', where='--contrasts')
    return replace(selection, scans=tuple(kept), left_out=tuple(left_out))


def subject_plans(
    selection: Selection,
    subject: str,
    settings: Settings,
    options: Options,
    *,
    only: set[str] | None = None,
    companions: bool = False,
    failed: Collection[str] = (),
) -> list[ScanPlan]:
    """Return what to do with the scans of one subject; anchors and companions that are not written come along.

    Parameters
    ----------
    selection, subject, settings, options
        What is chosen, whose scans, and how they are worked on.
    only
        Names of the scans that still have to be done; None means all.
    companions
        Whether the method looks at the other contrasts of a visit, too.
    failed
        Names of scans that cannot be companions.
    """
    wanted = [scan for scan in selection.of_subject(subject) if only is None or scan.name in only]
    plans: dict[str, ScanPlan] = {}
    for_fmriprep = handed_off(selection.scans) if settings.fmriprep_derivatives else frozenset()
    for scan in wanted:
        anchor = selection.anchor(scan)
        handoff = settings.fmriprep_derivatives if scan.name in for_fmriprep else None
        others = companions_of(scan, selection) if companions else ()
        plans[scan.name] = replace(
            measured(plan_scan(scan, anchor, settings, options, [other for other in others if other.name not in failed])), handoff=handoff,
            failed_companions=tuple(other.name for other in others if other.name in failed),
        )  # fmt: skip
    for plan in list(plans.values()):
        for scan in (plan.anchor, *plan.companions):
            if scan.name not in plans:
                needed = measured(plan_scan(scan, selection.anchor(scan), settings, options))
                plans[scan.name] = replace(needed, write=False)
    return list(plans.values())


def companions_of(scan: ScanFile, selection: Selection) -> tuple[ScanFile, ...]:
    """Return the scans of other contrasts of a visit that go through the same T1w, the first of each contrast."""
    anchor = selection.anchor(scan)
    found: dict[str, ScanFile] = {}
    for other in (anchor, *selection.of_subject(scan.subject)):
        if (
            other.suffix != scan.suffix
            and other.session == scan.session
            and selection.anchor(other) == anchor
        ):
            found.setdefault(other.suffix, other)
    return tuple(found[contrast] for contrast in sorted(found))


def plan_scan(
    scan: ScanFile,
    anchor: ScanFile,
    settings: Settings,
    options: Options,
    companions: Sequence[ScanFile] = (),
) -> ScanPlan:
    """Return the plan of one scan, with what other pipelines have computed."""
    given = Precomputed()
    ways: dict[str, Path] = {}
    if settings.derivatives and anchor.suffix == 'T1w':  # their names speak of the T1w only
        follow = settings.follow_links
        given = find_precomputed(anchor, settings.derivatives, BUNDLED, follow_links=follow)
        labels = {item.space.entities['space'] for item in options.templates if item.space.name != BUNDLED}
        # A transform from one pipeline does not fit a mask of another.
        sources = {given.source: given.root} if given.source and given.root else settings.derivatives
        found = {
            label: find_precomputed(anchor, sources, label, follow_links=follow).to_template
            for label in sorted(labels)
        }
        ways = {label: file for label, file in found.items() if file}
    plan = ScanPlan(scan, anchor, space_transforms=ways, companions=tuple(companions))
    return replace(plan, anchor_precomputed=given) if plan.follows else replace(plan, precomputed=given)


def measured(plan: ScanPlan) -> ScanPlan:
    """Return a plan with the size of its scan, for the memory estimate."""
    try:
        return replace(plan, shape=tuple(int(size) for size in open_image(plan.scan.path).shape))
    except Exception:  # noqa: BLE001 - a broken file is reported by its own node, with its name
        return plan


def expected_outputs(scan: ScanFile, anchor: ScanFile, spaces: Sequence[Space]) -> list[str]:
    """Return the main files that a scan will have, relative to the output folder."""
    names = OutputNames(scan)
    files = [
        names.image('harmonized'),
        names.image('preproc'),
        names.companion('mask', desc='brain'),
        names.qc,
    ]
    for space in spaces:
        if space.name == 'native' or (space.name == 'T1w' and (scan == anchor or anchor.suffix != 'T1w')):
            continue
        files += [spec['path'] for spec in space_specs(scan, space)]
    return files


def expected_handoff(plan: ScanPlan) -> list[str]:
    """Return the files that a T1w has in the folder for fMRIPrep, without sidecars."""
    return handoff_files(plan.scan, tuple(plan.handed_transforms))


def unfinished(scans: Sequence[ScanFile], plan: Plan, settings: Settings, digest: str) -> set[str]:
    """Return the names of the scans that are not complete with these settings and these files."""
    if settings.force:
        return {scan.name for scan in scans}
    root, folder = settings.output_dir, settings.fmriprep_derivatives
    for_fmriprep = handed_off(plan.selection.scans) if folder else frozenset()
    names = set()
    for scan in scans:
        others = companions_of(scan, plan.selection) if plan.method.uses_companions else ()
        planned = plan_scan(scan, plan.selection.anchor(scan), settings, plan.options, others)
        more = expected_handoff(planned) if scan.name in for_fmriprep else []
        qc = root / OutputNames(scan).qc
        if not is_complete(
            qc,
            root,
            planned.sources,
            digest,
            site=scan.site,
            handoff=folder if more else None,
            handed_off=more,
        ):
            names.add(scan.name)
    return names


def batches(subjects: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield subjects in groups: a graph of thousands of subjects would fill the memory before it starts."""
    for start in range(0, len(subjects), size):
        yield subjects[start : start + size]


__all__ = [
    'Plan', 'Template', 'batches', 'expected_handoff', 'expected_outputs', 'make_plan', 'subject_plans', 'unfinished',
]  # fmt: skip
