"""Learning a target once, so that jobs running side by side agree."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bidsharm.workflows.base import ScanPlan, init_target_wf
from bidsharm.workflows.engine import belongs, keep_resources, read_failures, run_graph
from bidsharm.workflows.planning import Plan, measured, plan_scan
from bidsharm.workflows.progress import Progress
from filelock import FileLock, Timeout

from bidsharm.bids.names import ScanFile
from bidsharm.bids.resume import fingerprint
from bidsharm.errors import ScanError
from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.contract import Cohort, Execution
from bidsharm.settings import Settings

#: How long a job waits for another that learns the same target (seconds).
WAIT_S = 6 * 3600


def target_folder(plan: Plan, settings: Settings) -> Path:
    """Return where the bundle of a target lives: named by what it is learnt from, so that a change makes a new one."""
    content = {
        'harmonizer': plan.method.name,
        'weights': plan.method.learnt,
        'kind': plan.method.target_label,
        'seed': settings.random_seed,
        'preprocessing': [
            settings.skull_strip,
            settings.brain_extraction,
            settings.registration,
            settings.sloppy,
        ],
        **({'acquisition': dict(plan.acquisition.parameters)} if plan.acquisition else {}),
        'scans': [
            [item.scan.name, item.write, [fingerprint(file)['sha256'] for file in _files(item)]]
            for item in _plans(plan, plan.fit_scans, settings)
        ],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    kind = ''.join(c if c.isalnum() or c in '.-' else '-' for c in plan.method.target_label)[:60]
    return settings.output_dir / 'models' / f'{plan.method.name}_{kind}_{digest}'


def known_target(plan: Plan, settings: Settings) -> Plan:
    """Return the plan with the bundle of its target where one has been learnt; nothing is learnt or written."""
    try:
        folder = target_folder(plan, settings) if plan.fit_scans or plan.acquisition else None
    except OSError:
        return plan
    return _with_bundle(plan, folder) if folder is not None and folder.exists() else plan


def ensure_target(
    plan: Plan, settings: Settings, work_dir: Path, log_dir: Path, progress: Progress | None = None
) -> Plan:
    """Return the plan with the bundle of its target, learning it if no job has yet.

    The first job to come takes a lock and learns; the others wait for it and read what it wrote.

    Raises
    ------
    ScanError
        If it cannot be learnt.
    """
    if not plan.fit_scans and plan.acquisition is None:
        return plan
    try:
        folder = target_folder(plan, settings)
    except OSError as error:
        raise ScanError(
            f'A scan that the target is learnt from cannot be read: {error}.', where='--target'
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        try:
            with FileLock(folder.parent / f'.{folder.name}.lock', timeout=WAIT_S):
                if not folder.exists() and plan.acquisition is not None:
                    _aim(plan, folder)
                elif not folder.exists():
                    _learn(plan, settings, folder, work_dir, log_dir, progress)
        except Timeout:
            raise ScanError(
                'Another job has been learning the same target for too long.', where=str(folder),
                fix='If no other job runs, delete the .lock file beside it.',
            ) from None  # fmt: skip
    return _with_bundle(plan, folder)


def _with_bundle(plan: Plan, folder: Path) -> Plan:
    method = replace(plan.method, model_dir=str(folder), model_digest=bundle.digest(folder))
    return replace(plan, method=method)


def _aim(plan: Plan, folder: Path) -> None:
    """Let a trained method aim at acquisition parameters; that needs no scans."""
    method = bundle.load(Path(plan.method.model_dir), Execution(**plan.method.execution))
    method.fit(Cohort(()), target=plan.acquisition)
    bundle.save(method, folder)


def _learn(
    plan: Plan, settings: Settings, folder: Path, work_dir: Path, log_dir: Path, progress: Progress | None
) -> None:
    """Learn from the scans that can be preprocessed; one that cannot is left out, and is reported with its subject."""
    scans, reason = list(plan.fit_scans), ''
    # A name of its own: jobs that learn other targets may share the working folder.
    name = f'target_{folder.name.rsplit("_", 1)[-1]}_wf'
    while scans:
        before = set(log_dir.glob('crash-*'))
        workflow = init_target_wf(
            plans=_plans(plan, scans, settings),
            method=plan.method,
            out_dir=folder,
            options=plan.options,
            name=name,
        )
        workflow.base_dir = str(work_dir)
        if progress:
            progress.start_target(workflow, [scan.name for scan in scans], plan.method.target_label)
        run_graph(
            workflow, settings, device=plan.options.device, on_node=progress.on_node if progress else None
        )
        keep_resources(workflow, log_dir)
        if folder.exists():
            if settings.clean_workdir:
                shutil.rmtree(work_dir / name, ignore_errors=True)
            return
        failures = read_failures(log_dir, since=before)
        reason = failures[0].what if failures else 'see nipype.log'
        broken = {
            scan.name
            for scan in scans
            if any(belongs(failure, other) for failure in failures for other in (scan, plan.fit_anchor(scan)))
        }
        if not broken:
            break
        scans = [scan for scan in scans if scan.name not in broken]
    raise ScanError(
        f'The target "{plan.method.target_label}" could not be learnt: {reason}',
        where='--target', fix='Choose another target, or mend its scans.',
    )  # fmt: skip


def _files(item: ScanPlan) -> list[Path]:
    """Return all files that preprocessing of a scan starts from, beside those of its anchor."""
    return [item.scan.path, *item.precomputed.files.values()]


def _plans(plan: Plan, scans: Sequence[ScanFile], settings: Settings) -> list[ScanPlan]:
    plans: dict[str, ScanPlan] = {}
    names = {scan.name for scan in scans}
    for scan in scans:
        anchor = plan.fit_anchor(scan)
        plans[scan.name] = measured(plan_scan(scan, anchor, settings, plan.options))
        if anchor.name not in names:
            plans[anchor.name] = replace(
                measured(plan_scan(anchor, anchor, settings, plan.options)), write=False
            )
    return list(plans.values())
