"""Sidecars: nearer and more specific ones win, and a broken one costs only its own fields."""

from __future__ import annotations

import json
import os

import pytest

from bidsharm.bids.metadata import read_metadata
from bidsharm.files import MAX_TEXT


@pytest.fixture
def write(tree):
    def put(name, **fields):
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields))

    return put


def test_nearer_sidecars_win(tree, write):
    image = tree.add('sub-01_ses-a_T1w')
    write('T1w.json', EchoTime=1, RepetitionTime=1, FlipAngle=1, Manufacturer='Siemens')
    write('sub-01/sub-01_T1w.json', EchoTime=2, RepetitionTime=2, FlipAngle=2)
    write('sub-01/ses-a/sub-01_ses-a_T1w.json', EchoTime=3, RepetitionTime=3)
    write('sub-01/ses-a/anat/sub-01_ses-a_T1w.json', EchoTime=4)
    assert read_metadata(image, tree.root) == (
        {'EchoTime': 4, 'RepetitionTime': 3, 'FlipAngle': 2, 'Manufacturer': 'Siemens'},
        (),
    )


def test_more_entities_win_in_one_folder(tree, write):
    image = tree.add('sub-01_acq-hi_run-1_T1w')
    write('sub-01/anat/sub-01_T1w.json', EchoTime=1, FlipAngle=1)
    write('sub-01/anat/sub-01_acq-hi_T1w.json', EchoTime=2)
    assert read_metadata(image, tree.root)[0] == {'EchoTime': 2, 'FlipAngle': 1}


def test_a_sidecar_that_came_later_is_found_unless_the_caller_keeps_what_was_listed(tree, write):
    image = tree.add('sub-01_T1w')
    listed = {}
    assert read_metadata(image, tree.root, listed=listed) == ({}, ())
    write('T1w.json', EchoTime=1)
    assert read_metadata(image, tree.root)[0] == {'EchoTime': 1}
    assert read_metadata(image, tree.root, listed=listed)[0] == {}


@pytest.mark.parametrize(
    'name',
    [
        'T2w.json', 'sub-02_T1w.json', 'acq-lo_T1w.json', 'sub-01/anat/sub-01_run-2_T1w.json', 'sub-01/anat/sub-01_T2w.json',
        'sub-01/anat/sub-01_run-1_echo-1_T1w.json', 'sub-01/func/sub-01_run-1_T1w.json', 'T1w.json.bak', 'participants.json',
        '../T1w.json',
    ],
)  # fmt: skip
def test_sidecars_of_other_scans_do_not_apply(tree, write, name):
    image = tree.add('sub-01_run-1_T1w', EchoTime=5)
    write(name, EchoTime=9, FlipAngle=9)
    assert read_metadata(image, tree.root) == ({'EchoTime': 5}, ())


@pytest.mark.parametrize(
    'content',
    [
        b'', b'{"EchoTime": ', b'[1, 2]', b'"text"', b'null', b'\xff\xfe\x00', b'[' * 100_000,
        b'{"a": "' + b'x' * MAX_TEXT + b'"}',
    ],
    ids=['empty', 'cut', 'list', 'text', 'null', 'bytes', 'deep', 'huge'],
)  # fmt: skip
def test_broken_sidecar(tree, write, content):
    """Its fields are missing, with a warning that names it; the other sidecars still count."""
    image = tree.add('sub-01_T1w')
    write('T1w.json', EchoTime=1)
    (image.parent / 'sub-01_T1w.json').write_bytes(content)
    fields, warnings = read_metadata(image, tree.root)
    assert fields == {'EchoTime': 1}
    assert len(warnings) == 1
    assert 'sub-01_T1w.json' in warnings[0]


def test_broken_link(tree):
    image = tree.add('sub-01_T1w')
    os.symlink(tree.root / 'gone.json', image.parent / 'sub-01_T1w.json')
    fields, warnings = read_metadata(image, tree.root)
    assert fields == {}
    assert 'sub-01_T1w.json' in warnings[0]


def test_byte_order_mark(tree):
    image = tree.add('sub-01_T1w')
    (image.parent / 'sub-01_T1w.json').write_bytes(b'\xef\xbb\xbf{"StationName": "\xc3\xa5"}')
    assert read_metadata(image, tree.root) == ({'StationName': 'å'}, ())


def test_what_is_no_bids_name_has_no_metadata(tree, write):
    write('T1w.json', EchoTime=1)
    assert read_metadata(tree.root / 'sub-01/anat/scan.nii.gz', tree.root) == ({}, ())
