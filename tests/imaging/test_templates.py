"""Names of spaces, the template that is always at hand, and templates that are not."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from bidsharm.errors import ConfigurationError, ExitCode, UsageError
from bidsharm.imaging import templates
from bidsharm.imaging.templates import BUNDLED, Space, find_template, parse_space


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('native', Space('native')),
        ('anat', Space('native')),
        ('T1w', Space('T1w')),
        ('T1W', Space('T1w')),
        ('MNI152NLin2009cAsym', Space('MNI152NLin2009cAsym', '1')),
        ('MNI152NLin2009cAsym:res-2', Space('MNI152NLin2009cAsym', '2')),
        ('MNI152NLin6Asym:res-02', Space('MNI152NLin6Asym', '2')),
        ('MNIInfant:cohort-3:res-1', Space('MNIInfant', '1', '3')),
        ('MNIInfant:res-1:cohort-3', Space('MNIInfant', '1', '3')),
        ('MNIPediatricAsym:cohort-1', Space('MNIPediatricAsym', '1', '1')),
    ],
)
def test_spaces(text, expected):
    assert parse_space(text) == expected


@pytest.mark.parametrize(
    'text',
    ['', ' ', 'MNI 152', 'MNI152:', 'MNI152:res', 'MNI152:res-', 'MNI152:foo-1', 'MNI152:res-2mm!', '../etc',
     ':res-1', 'native:res-1', 'T1w:res-2', 'anat:cohort-1', 'MNI152NLin2009cAsym:RES-1', 'MNI152-res-1'],
)  # fmt: skip
def test_nonsense_is_refused_as_a_wrong_command(text):
    with pytest.raises(UsageError) as caught:
        parse_space(text)
    assert caught.value.where == '--output-spaces'
    assert text in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE == 2


def test_entities_of_a_space():
    assert parse_space('native').entities == {}
    assert parse_space('T1w').entities == {'space': 'T1w'}
    assert parse_space('MNI152NLin6Asym:res-02').entities == {'space': 'MNI152NLin6Asym', 'res': '2'}
    assert parse_space('MNIInfant:cohort-3').entities == {'space': 'MNIInfant+3', 'res': '1'}


@pytest.fixture
def no_network(monkeypatch):
    """Make every attempt to use TemplateFlow's client an error that no code may swallow."""

    def attempt(space: Space) -> None:
        pytest.fail(f'tried to download {space.name}')

    monkeypatch.setattr(templates, '_download', attempt)


@pytest.mark.parametrize('resolution', ['1', '2'])
def test_the_bundled_template_needs_no_network(resolution, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'none'))
    for offline in (True, False):
        found = find_template(Space(BUNDLED, resolution), offline=offline)
        assert found.mask is None
        image = nib.load(found.brain)
        assert image.shape == (197, 233, 189)
        assert np.asarray(image.dataobj).max() > 0
    assert not (tmp_path / 'none').exists()


def test_the_bundled_template_has_two_resolutions():
    with pytest.raises(ConfigurationError, match='res-1 and res-2') as caught:
        find_template(Space(BUNDLED, '3'), offline=True)
    assert 'res-3' in caught.value.where


def test_priors_are_probabilities_of_one_brain():
    brain, priors = templates.tissue_priors(step=2)
    data, parts = np.asarray(brain.dataobj), np.asarray(priors.dataobj)
    assert parts.shape == (*data.shape, 3)
    assert parts.min() >= 0
    assert parts.max() <= 1
    np.testing.assert_array_equal(brain.affine, priors.affine)
    inside = data > 0.3
    np.testing.assert_allclose(np.median(parts[inside].sum(axis=-1)), 1, atol=0.02)
    # Order CSF, GM, WM: on a T1w template that is the order of brightness.
    brightness = [np.average(data, weights=parts[..., k]) for k in range(3)]
    assert brightness[0] < brightness[1] < brightness[2]


def test_coarse_priors_keep_place_and_volume():
    (fine, fine_priors), (coarse, coarse_priors) = (templates.tissue_priors(step=step) for step in (1, 2))

    def volumes(image: nib.Nifti1Image) -> np.ndarray:
        return np.asarray(image.dataobj, dtype=float).sum(axis=(0, 1, 2)) * abs(
            np.linalg.det(image.affine[:3, :3])
        )

    def centre(image: nib.Nifti1Image) -> np.ndarray:
        weights = np.asarray(image.dataobj, dtype=float)
        mean = [np.average(np.arange(n), weights=weights.sum(axis=tuple({0, 1, 2} - {axis})))
                for axis, n in enumerate(weights.shape)]  # fmt: skip
        return (image.affine @ [*mean, 1])[:3]

    np.testing.assert_allclose(volumes(coarse_priors), volumes(fine_priors), rtol=1e-3)
    np.testing.assert_allclose(centre(coarse), centre(fine), atol=0.05)


# Templates of TemplateFlow


def add_template(folder: Path, name: str, *, fill: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.full((4, 4, 4), fill, np.float32), np.eye(4)).to_filename(folder / name)
    return folder / name


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path))
    return tmp_path


def test_offline_a_missing_template_is_a_matter_of_configuration(home, no_network):
    with pytest.raises(ConfigurationError) as caught:
        find_template(Space('MNI152NLin6Asym', '2'), offline=True)
    assert caught.value.exit_code == ExitCode.CONFIGURATION == 78
    assert caught.value.where == '--output-spaces'
    text = str(caught.value)
    for word in ('MNI152NLin6Asym', 'res-2', str(home), 'templateflow.api', BUNDLED):
        assert word in text


def test_a_failed_download_gives_the_same_advice(home, monkeypatch):
    client = ModuleType('templateflow.api')

    def refuse(*arguments, **options):
        raise OSError('no network')

    client.get = refuse
    package = ModuleType('templateflow')
    package.api = client
    monkeypatch.setitem(sys.modules, 'templateflow', package)
    monkeypatch.setitem(sys.modules, 'templateflow.api', client)
    with pytest.raises(
        ConfigurationError, match=r'could not be fetched: OSError: no network\. Fetch it once'
    ):
        find_template(Space('MNI152NLin6Asym', '2'), offline=False)


def test_a_download_that_does_not_end_is_given_up(home, monkeypatch):
    client, package = ModuleType('templateflow.api'), ModuleType('templateflow')
    ended = threading.Event()
    client.get, package.api = lambda *arguments, **options: ended.wait(60), client
    monkeypatch.setitem(sys.modules, 'templateflow', package)
    monkeypatch.setitem(sys.modules, 'templateflow.api', client)
    monkeypatch.setattr(templates, 'DOWNLOAD_LIMIT_S', 0.1)
    with pytest.raises(ConfigurationError, match=r'it took more than 0\.1 s\. Fetch it once'):
        find_template(Space('MNI152NLin6Asym', '2'), offline=False)
    ended.set()


def test_what_is_downloaded_is_used(home, monkeypatch):
    asked = []

    def fetch(name, **options):
        asked.append((name, options))
        label = '_desc-brain' if options['desc'] else ''
        add_template(home / f'tpl-{name}', f'tpl-{name}_res-02{label}_{options["suffix"]}.nii.gz')

    client, package = ModuleType('templateflow.api'), ModuleType('templateflow')
    client.get, package.api = fetch, client
    monkeypatch.setitem(sys.modules, 'templateflow', package)
    monkeypatch.setitem(sys.modules, 'templateflow.api', client)
    found = find_template(Space('Fish', '2'), offline=False)
    assert found.brain.name == 'tpl-Fish_res-02_desc-brain_T1w.nii.gz'
    assert {options['resolution'] for _, options in asked} == {'2'}


def test_a_template_on_disk_is_used_without_network(home, no_network):
    folder = home / 'tpl-MNI152NLin6Asym'
    head = add_template(folder, 'tpl-MNI152NLin6Asym_res-02_T1w.nii.gz')
    mask = add_template(folder, 'tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz')
    add_template(folder, 'tpl-MNI152NLin6Asym_res-01_T1w.nii.gz')
    found = find_template(Space('MNI152NLin6Asym', '2'), offline=False)
    assert (found.brain, found.mask) == (head, mask)


def test_a_brain_is_preferred_to_a_head(home, no_network):
    folder = home / 'tpl-Other'
    add_template(folder, 'tpl-Other_res-1_T1w.nii.gz')
    brain = add_template(folder, 'tpl-Other_res-1_desc-brain_T1w.nii.gz')
    assert find_template(Space('Other', '1'), offline=True).brain == brain


def test_a_head_without_a_mask_is_no_template(home, no_network):
    add_template(home / 'tpl-Other', 'tpl-Other_res-1_T1w.nii.gz')
    with pytest.raises(ConfigurationError):
        find_template(Space('Other', '1'), offline=True)


def test_resolutions_are_not_mixed_up(home, no_network):
    add_template(home / 'tpl-Other', 'tpl-Other_res-12_desc-brain_T1w.nii.gz')
    add_template(home / 'tpl-Other', 'tpl-Other_res-1_desc-brain_T2w.nii.gz')
    for resolution in ('1', '2'):
        with pytest.raises(ConfigurationError):
            find_template(Space('Other', resolution), offline=True)


def test_cohorts_have_folders_of_their_own(home, no_network):
    brain = add_template(
        home / 'tpl-MNIInfant' / 'cohort-3', 'tpl-MNIInfant_cohort-3_res-1_desc-brain_T1w.nii.gz'
    )
    assert find_template(Space('MNIInfant', '1', '3'), offline=True).brain == brain
    with pytest.raises(ConfigurationError):
        find_template(Space('MNIInfant', '1', '2'), offline=True)


def test_a_file_without_content_is_one_that_templateflow_has_not_fetched(home, no_network):
    """TemplateFlow's client lays out its whole archive as empty files before it fetches any."""
    folder = home / 'tpl-MNIInfant' / 'cohort-3'
    folder.mkdir(parents=True)
    (folder / 'tpl-MNIInfant_cohort-3_res-1_desc-brain_T1w.nii.gz').touch()
    with pytest.raises(ConfigurationError, match=r"Fetch it once with network: .*cohort='3'"):
        find_template(Space('MNIInfant', '1', '3'), offline=True)
    head = add_template(folder, 'tpl-MNIInfant_cohort-3_res-1_T1w.nii.gz')
    add_template(folder, 'tpl-MNIInfant_cohort-3_res-1_desc-brain_mask.nii.gz')
    assert find_template(Space('MNIInfant', '1', '3'), offline=True).brain == head


@pytest.mark.parametrize('content', [b'<html>not found</html>', b'\x1f\x8b\x08\x00'])
def test_a_broken_template_is_named(content, home, no_network):
    """An interrupted download leaves a part of a file; a proxy leaves a web page."""
    folder = home / 'tpl-Other'
    folder.mkdir()
    broken = folder / 'tpl-Other_res-1_desc-brain_T1w.nii.gz'
    broken.write_bytes(content)
    with pytest.raises(ConfigurationError, match='cannot be read') as caught:
        find_template(Space('Other', '1'), offline=False)
    assert caught.value.where == str(broken)
    assert 'Delete' in caught.value.fix


def test_where_templates_lie(monkeypatch, tmp_path):
    for name in ('TEMPLATEFLOW_HOME', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(name, raising=False)
    assert templates.templateflow_home() == Path('/tmp/templateflow')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert templates.templateflow_home() == tmp_path / '.cache' / 'templateflow'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert templates.templateflow_home() == tmp_path / 'cache' / 'templateflow'
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'own'))
    assert templates.templateflow_home() == tmp_path / 'own'
