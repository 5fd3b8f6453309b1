"""Methods that look at the other contrasts of a visit: which these are, how they get there, and what if one is bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows.base import Options, init_single_subject_wf
from bidsharm.workflows.planning import companions_of, subject_plans
from nipype.interfaces import utility as niu

from bidsharm.bids.query import Selection
from bidsharm.imaging.grids import resample
from bidsharm.simulation.dataset import simulate

VISIT = ('sub-01_ses-1_T1w', 'sub-01_ses-1_T2w', 'sub-01_ses-1_FLAIR')


@pytest.fixture
def visits(make_raw, tmp_path) -> Selection:
    """Two visits; the first has a second T2w, and the second no T1w of its own."""
    names = [
        *VISIT,
        'sub-01_ses-1_run-2_T2w',
        'sub-01_ses-2_T2w',
        'sub-02_ses-1_T1w',
        'sub-02_ses-1_ce-gad_T1w',
    ]
    scans = tuple(make_raw(tmp_path / 'bids', name) for name in names)
    return Selection(scans, structural=tuple(scan for scan in scans if scan.suffix == 'T1w'))


def scan_of(selection: Selection, name: str):
    return next(scan for scan in selection.scans if scan.name == name)


@pytest.mark.parametrize(
    ('name', 'others'),
    [
        ('sub-01_ses-1_T1w', ['sub-01_ses-1_FLAIR', 'sub-01_ses-1_T2w']),
        ('sub-01_ses-1_FLAIR', ['sub-01_ses-1_T1w', 'sub-01_ses-1_T2w']),
        ('sub-01_ses-1_run-2_T2w', ['sub-01_ses-1_FLAIR', 'sub-01_ses-1_T1w']),
        ('sub-01_ses-2_T2w', []),  # the T1w that it follows is of another visit
        ('sub-02_ses-1_ce-gad_T1w', []),
    ],
)
def test_companions_are_the_other_contrasts_of_the_visit(name, others, visits):
    assert [other.name for other in companions_of(scan_of(visits, name), visits)] == others


def test_a_companion_that_is_done_comes_along_without_being_written(visits, make_settings):
    settings = make_settings()
    plans = subject_plans(visits, '01', settings, Options(), only={VISIT[0]}, companions=True)
    assert {plan.scan.name: plan.write for plan in plans} == dict(
        zip(VISIT, (True, False, False), strict=True)
    )
    own = next(plan for plan in plans if plan.write)
    assert {path.name for path in own.sources.values()} == {f'{name}.nii.gz' for name in VISIT}
    alone = subject_plans(visits, '01', settings, Options(), only={VISIT[0]})
    assert [plan.scan.name for plan in alone] == [VISIT[0]]


def test_a_companion_that_failed_is_left_out_and_named(visits, make_settings):
    plans = subject_plans(
        visits, '01', make_settings(), Options(), only={VISIT[0]}, companions=True, failed={VISIT[1]}
    )
    own = next(plan for plan in plans if plan.write)
    assert [other.name for other in own.companions] == [VISIT[2]]
    assert any(f'without {VISIT[1]}' in warning for warning in own.warnings)
    assert VISIT[1] not in {plan.scan.name for plan in plans}


def test_ways_from_companion_to_scan(visits, make_settings, make_method, tmp_path):
    """antsApplyTransforms takes the last of the list first: from the companion to the T1w, then from there to the scan."""
    plans = subject_plans(visits, '01', make_settings(), Options(), only=set(VISIT), companions=True)
    workflow = init_single_subject_wf(plans=plans, method=make_method(), output_dir=tmp_path / 'out')
    graph = workflow._create_flat_graph()
    ways = {}
    for node in graph:
        if isinstance(node.interface, niu.Merge) and node.name.startswith('from_'):
            edges = graph.in_edges(node, data=True)
            ways[node.name] = sorted(
                (there, source.fullname.split('.')[1].removeprefix('prep_').removesuffix('_wf'), here.split('_')[0])
                for source, _, data in edges for here, there in data['connect']
            )  # fmt: skip
    t1w, t2w, flair = (scan_of(visits, name).node for name in VISIT)
    back, forth = 'from', 'to'
    assert ways == {
        f'from_T2w_to_{t1w}': [('in1', t2w, forth)],
        f'from_FLAIR_to_{t1w}': [('in1', flair, forth)],
        f'from_T1w_to_{t2w}': [('in1', t2w, back)],
        f'from_T1w_to_{flair}': [('in1', flair, back)],
        f'from_FLAIR_to_{t2w}': [('in1', t2w, back), ('in2', flair, forth)],
        f'from_T2w_to_{flair}': [('in1', flair, back), ('in2', t2w, forth)],
    }


def run(*arguments: object, check: int) -> str:
    command = [sys.executable, '-m', 'bidsharm', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group('participant')
def test_a_visit_seen_by_a_method_that_looks_around(install_plugin, tmp_path):
    """The companion lies on the scan; a bad one costs itself only, and is used when it has been mended."""
    install_plugin('looking', 'Looking')
    bids, out = tmp_path / 'bids', tmp_path / 'out'
    simulate(bids, subjects=1, resolution=2.0, seed=5, contrasts=('T1w', 'T2w'))
    files = {
        name: bids / f'sub-01/ses-{name}/anat/sub-01_ses-{name}_T2w.nii.gz' for name in ('northA', 'southB')
    }
    whole = files['southB'].read_bytes()
    files['southB'].write_bytes(whole[: len(whole) // 2])
    arguments = (bids, out, 'participant', '--harmonizer', 'looking', '--site', 'session', '--sloppy', '--skip-bids-validation', '-w', tmp_path / 'work')  # fmt: skip
    run(*arguments, check=1)
    assert shown(out, 'northA') == (['sub-01_ses-northA_T2w'], [])
    assert likeness(out, files['northA'], 'northA') > 0.98
    companions, warnings = shown(out, 'southB')
    assert companions == []
    assert any('without sub-01_ses-southB_T2w' in warning for warning in warnings)
    files['southB'].write_bytes(whole)
    said = run(*arguments, check=0)
    assert '2 were done before' in said
    assert shown(out, 'southB') == (['sub-01_ses-southB_T2w'], [])
    assert likeness(out, files['southB'], 'southB') > 0.98


def shown(out: Path, session: str) -> tuple[list[str], list[str]]:
    """Return the companions that the sidecar of a T1w names, and the warnings of its record about companions."""
    stem = out / f'sub-01/ses-{session}/anat/sub-01_ses-{session}'
    sidecar = json.loads(Path(f'{stem}_desc-harmonized_T1w.json').read_text())
    record = json.loads(Path(f'{stem}_desc-T1w_qc.json').read_text())
    found = [warning for warning in record['warnings'] if 'without' in warning]
    return sidecar['Harmonization'].get('Companions', []), found


def likeness(out: Path, t2w: Path, session: str) -> float:
    """Return the correlation of a harmonized T1w with the raw T2w where they lie, which in a simulated visit is the truth."""
    image = nib.load(out / f'sub-01/ses-{session}/anat/sub-01_ses-{session}_desc-harmonized_T1w.nii.gz')
    values, other = image.get_fdata(dtype=np.float32), nib.load(t2w)
    truth = resample(other.get_fdata(dtype=np.float32), other.affine, values.shape, image.affine)
    inside = values > 0
    return float(np.corrcoef(values[inside], truth[inside])[0, 1])
