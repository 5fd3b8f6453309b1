from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.validation import find_validator
from bidsharm.errors import UsageError
from bidsharm.imaging.icosphere import icosphere, vertex_count
from bidsharm.imaging.surfaces import read_map
from bidsharm.simulation.dataset import prepare_folder
from bidsharm.simulation.surfaces import (
    AGING,
    HEMISPHERES,
    MIDDLE_AGE,
    SITES,
    SurfaceSite,
    draw_cortex,
    measure,
    medial_wall,
    simulate_surfaces,
    sites_of,
    smooth_field,
)

LEVEL = 3


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('simulated') / 'surfaces'
    return simulate_surfaces(out, subjects=4, sites=SITES[:3], level=LEVEL, seed=1)


def thickness(root: Path, person: str, session: str, side: str) -> np.ndarray:
    visit = f'ses-{session}/' if session else ''
    name = f'sub-{person}_' + (f'ses-{session}_' if session else '')
    return read_map(
        root / f'sub-{person}/{visit}anat/{name}hemi-{side}_space-fsaverage_den-642_thickness.shape.gii', side
    )


def test_everybody_visits_every_site(surfaces: Path) -> None:
    maps = sorted(path.name for path in surfaces.glob('sub-*/ses-*/anat/*.shape.gii'))
    assert maps == sorted(
        f'sub-0{person}_ses-{site.label}_hemi-{side}_space-fsaverage_den-642_thickness.shape.gii'
        for person in range(1, 5)
        for site in SITES[:3]
        for side in HEMISPHERES
    )
    with (surfaces / 'participants.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    for row in rows:
        both = [thickness(surfaces / 'derivatives/truth', row['participant_id'][4:], '', s) for s in 'LR']
        found = np.concatenate(both)
        assert float(row['thickness_mm']) == pytest.approx(found[found > 0].mean(), abs=1e-3)
        assert 20 <= float(row['age']) <= 80


def test_sites_do_what_they_say(surfaces: Path) -> None:
    sites = json.loads((surfaces / 'sites.json').read_text())
    for site in SITES[:3]:
        slopes, left = [], []
        for person in ('01', '02', '03', '04'):
            true = thickness(surfaces / 'derivatives/truth', person, '', 'L')
            seen = thickness(surfaces, person, site.label, 'L')
            assert np.array_equal(seen == 0, true == 0)
            slope, _ = np.polyfit(true[true > 0], seen[true > 0], 1)
            slopes.append(slope)
            left.append((seen - site.gain * true - site.offset)[true > 0])
        assert np.mean(slopes) == pytest.approx(site.gain, abs=0.08)
        # What is left over is the pattern, the same in all people, and noise of their own.
        pattern = np.mean(left, axis=0)
        noise = np.std(np.array(left) - pattern, ddof=1) * np.sqrt(4 / 3)
        assert noise == pytest.approx(site.noise, rel=0.15)
        assert pattern.std() == pytest.approx(np.hypot(site.pattern, site.noise / 2), rel=0.3)
        assert sites[site.label]['gain'] == site.gain


def test_the_data_set_and_its_truth_are_valid_bids(surfaces: Path) -> None:
    validator = find_validator()
    if validator is None:
        pytest.skip('bids-validator-deno is not installed')
    for folder in (surfaces, surfaces / 'derivatives' / 'truth'):
        done = subprocess.run(
            [validator, str(folder), '--ignoreWarnings', '--format', 'json'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout)['issues']['issues'] == []


def test_thickness_falls_with_age_as_planted() -> None:
    cortices = [draw_cortex(0, number, f'{number}', LEVEL) for number in range(60)]
    ages = np.array([one.age for one in cortices])
    means = np.array([one.thickness['L'][one.thickness['L'] > 0].mean() for one in cortices])
    slope, middle = np.polyfit(ages - MIDDLE_AGE, means, 1)
    assert slope == pytest.approx(AGING, abs=0.0015)
    assert middle == pytest.approx(2.5, abs=0.08)


def test_the_medial_wall_looks_inwards() -> None:
    for side, sign in (('L', 1), ('R', -1)):
        wall = medial_wall(4, side)
        assert 0.06 < wall.mean() < 0.11
        assert (sign * icosphere(4).vertices[wall, 0] > 0).all()


def test_patterns_are_smooth() -> None:
    values = smooth_field(np.random.default_rng(0), 5)
    assert values.std() == pytest.approx(1)
    assert abs(values.mean()) < 1e-9
    ring = icosphere(5).ring
    assert (values[ring].mean(axis=1) - values).std() < 0.05
    assert len(smooth_field(np.random.default_rng(0), 1)) == vertex_count(1)


def test_the_same_seed_gives_the_same_bytes(surfaces: Path, tmp_path: Path) -> None:
    simulate_surfaces(tmp_path / 'again', subjects=4, sites=SITES[:3], level=LEVEL, seed=1)
    assert contents(tmp_path / 'again') == contents(surfaces)
    simulate_surfaces(tmp_path / 'other', subjects=4, sites=SITES[:3], level=LEVEL, seed=2)
    assert contents(tmp_path / 'other') != contents(surfaces)


def test_more_people_or_sites_change_nothing_that_was_there(surfaces: Path, tmp_path: Path) -> None:
    simulate_surfaces(tmp_path / 'more', subjects=5, sites=sites_of(5, 1), level=LEVEL, seed=1)
    more, before = contents(tmp_path / 'more'), contents(surfaces)
    assert all(more[name] == content for name, content in before.items() if name.endswith('.shape.gii'))


def test_without_travelling_everybody_is_seen_once(tmp_path: Path) -> None:
    simulate_surfaces(tmp_path, subjects=4, sites=SITES[:2], level=LEVEL, travel=False)
    assert sorted(path.parent.name + path.name for path in tmp_path.glob('sub-*/ses-*')) == [
        'sub-01ses-A', 'sub-02ses-B', 'sub-03ses-A', 'sub-04ses-B',
    ]  # fmt: skip


def test_maps_are_gifti_that_others_read(surfaces: Path) -> None:
    path = next(surfaces.glob('sub-01/ses-A/anat/*hemi-R*.shape.gii'))
    (array,) = nib.load(path).darrays
    assert array.data.dtype == np.float32
    assert array.meta['AnatomicalStructurePrimary'] == 'CortexRight'


def test_it_may_be_replaced_and_others_may_not(surfaces: Path, tmp_path: Path) -> None:
    simulate_surfaces(tmp_path / 'old', subjects=2, sites=SITES[:2], level=LEVEL)
    prepare_folder(tmp_path / 'old', force=True)
    assert not list((tmp_path / 'old').glob('sub-*'))


@pytest.mark.parametrize(
    'options',
    [{'subjects': 0}, {'sites': ()}, {'sites': (SITES[0], SurfaceSite('A'))}, {'level': 2}, {'seed': -1}],
)
def test_senseless_requests_are_refused_before_anything_is_written(options: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        simulate_surfaces(tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_measuring_depends_on_names_only() -> None:
    cortex = draw_cortex(0, 1, '01', LEVEL)
    first, again = (measure(cortex, SITES[1], 'L', LEVEL, 0) for _ in range(2))
    assert np.array_equal(first, again)
