"""What other pipelines made, and that nothing is taken for a scan that is not its own."""

from __future__ import annotations

import pytest

from bidsharm.bids.derivatives import Precomputed, check_folders, find_precomputed
from bidsharm.errors import UsageError

TEMPLATE = 'MNI152NLin2009cAsym'


@pytest.fixture
def derive(tmp_path):
    """Return a function that writes empty files of a pipeline and returns its root."""

    def write(*names, root='smriprep'):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / root

    return write


def files(stem: str, folder: str) -> list[str]:
    """Return the names that sMRIPrep and fMRIPrep give."""
    return [
        f'{folder}/{stem}_desc-preproc_T1w.nii.gz', f'{folder}/{stem}_desc-brain_mask.nii.gz',
        f'{folder}/{stem}_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5', f'{folder}/{stem}_from-{TEMPLATE}_to-T1w_mode-image_xfm.h5',
    ]  # fmt: skip


def whole(root, stem, folder, source='smriprep'):
    return Precomputed(*(root / name for name in files(stem, folder)), source=source, root=root)


@pytest.mark.parametrize(
    ('scan', 'stem', 'folder'),
    [
        ('sub-01_T1w', 'sub-01', 'sub-01/anat'),
        ('sub-01_ses-a_T1w', 'sub-01_ses-a', 'sub-01/ses-a/anat'),
        ('sub-01_ses-a_acq-x_rec-n_run-2_T1w', 'sub-01_ses-a_acq-x_rec-n_run-2', 'sub-01/ses-a/anat'),
        ('sub-01_acq-x_run-1_T1w', 'sub-01', 'sub-01/anat'),
        ('sub-01_ses-a_run-1_T1w', 'sub-01_ses-a', 'sub-01/ses-a/anat'),
        ('sub-01_ses-a_run-1_T1w', 'sub-01', 'sub-01/anat'),
    ],
)
def test_layouts_of_smriprep_and_fmriprep(tree, derive, scan, stem, folder):
    root = derive(*files(stem, folder))
    found = find_precomputed(tree.scan(scan), {'smriprep': root}, TEMPLATE)
    assert found == whole(root, stem, folder)
    assert set(found.files) == {'preproc', 'brain_mask', 'to_template', 'from_template'}
    assert found.uris['brain_mask'] == f'bids:smriprep:{found.brain_mask.relative_to(root).as_posix()}'


def test_the_scans_own_name_wins(tree, derive):
    root = derive(*files('sub-01', 'sub-01/anat'), *files('sub-01_run-1', 'sub-01/anat'))
    found = find_precomputed(tree.scan('sub-01_run-1_T1w'), {'smriprep': root}, TEMPLATE)
    assert found == whole(root, 'sub-01_run-1', 'sub-01/anat')


@pytest.mark.parametrize(
    ('scan', 'sibling', 'stem', 'folder'),
    [
        ('sub-01_run-1_T1w', 'sub-01_run-2_T1w', 'sub-01', 'sub-01/anat'),
        ('sub-01_ses-a_run-1_T1w', 'sub-01_ses-a_run-2_T1w', 'sub-01_ses-a', 'sub-01/ses-a/anat'),
        ('sub-01_ses-a_T1w', 'sub-01_ses-b_T1w', 'sub-01', 'sub-01/anat'),
    ],
)
def test_an_average_over_scanners_is_none_of_them(tree, derive, scan, sibling, stem, folder):
    """fMRIPrep merges runs and sessions; taken for each of them, both scanners would get one and the same image."""
    root = derive(*files(stem, folder))
    tree.add(sibling)
    assert find_precomputed(tree.scan(scan), {'smriprep': root}, TEMPLATE) == Precomputed()


def test_a_t2w_beside_it_makes_no_average(tree, derive):
    root = derive(*files('sub-01', 'sub-01/anat'))
    tree.add('sub-01_run-1_T2w')
    tree.add('sub-010_T1w')
    found = find_precomputed(tree.scan('sub-01_run-1_T1w'), {'smriprep': root}, TEMPLATE)
    assert found == whole(root, 'sub-01', 'sub-01/anat')


def test_preproc_needs_its_mask(tree, derive):
    names = files('sub-01', 'sub-01/anat')
    root = derive(names[0])
    assert find_precomputed(tree.scan('sub-01_T1w'), {'smriprep': root}, TEMPLATE) == Precomputed()
    root = derive(names[1], root='mask')
    found = find_precomputed(tree.scan('sub-01_T1w'), {'mask': root}, TEMPLATE)
    assert found == Precomputed(brain_mask=root / names[1], source='mask', root=root)


@pytest.mark.parametrize('way', [2, 3])
def test_a_transform_needs_its_inverse(tree, derive, way):
    names = files('sub-01', 'sub-01/anat')
    root = derive(names[1], names[way])
    found = find_precomputed(tree.scan('sub-01_T1w'), {'smriprep': root}, TEMPLATE)
    assert found.uris == {'brain_mask': f'bids:smriprep:{names[1]}'}


def test_transforms_to_another_template_do_not_count(tree, derive):
    root = derive(*files('sub-01', 'sub-01/anat'))
    found = find_precomputed(tree.scan('sub-01_T1w'), {'smriprep': root}, 'MNI152NLin6Asym')
    assert (found.to_template, found.from_template) == (None, None)
    assert found.brain_mask is not None


def test_pipelines_are_not_mixed(tree, derive):
    """A mask of one and a transform of another belong to different spaces; the first that offers something counts."""
    names = files('sub-01', 'sub-01/anat')
    first, second = derive(names[1], root='first'), derive(*names, root='second')
    scan = tree.scan('sub-01_T1w')
    found = find_precomputed(scan, {'first': first, 'second': second}, TEMPLATE)
    assert found == Precomputed(brain_mask=first / names[1], source='first', root=first)
    assert find_precomputed(scan, {'second': second, 'first': first}, TEMPLATE).source == 'second'


def test_what_cannot_be_used_does_not_hide_the_next(tree, derive):
    names = files('sub-01', 'sub-01/anat')
    first, second = derive(names[0], names[2], root='first'), derive(*names, root='second')
    found = find_precomputed(tree.scan('sub-01_T1w'), {'first': first, 'second': second}, TEMPLATE)
    assert found == whole(second, 'sub-01', 'sub-01/anat', 'second')


def test_other_subjects_are_not_ours(tree, derive):
    root = derive(*files('sub-010', 'sub-010/anat'), *files('sub-01_ses-b', 'sub-01/ses-b/anat'))
    assert find_precomputed(tree.scan('sub-01_ses-a_T1w'), {'x': root}, TEMPLATE) == Precomputed()
    assert find_precomputed(tree.scan('sub-01_ses-a_T1w'), {}, TEMPLATE).files == {}


def test_folders_are_checked(derive, tmp_path):
    check_folders({'good': derive('sub-01/anat/x')})
    with pytest.raises(UsageError, match='does not exist') as caught:
        check_folders({'gone': tmp_path / 'gone'})
    assert 'gone=' in caught.value.where
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UsageError, match='holds no sub-'):
        check_folders({'empty': tmp_path / 'empty'})
