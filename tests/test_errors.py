"""Errors say what, where and how to mend it, and keep saying so across processes."""

from __future__ import annotations

import pickle

import pytest

from bidsharm import errors
from bidsharm.errors import BidsharmError, ExitCode, NotServed, ScanError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BidsharmError)]


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (BidsharmError('It is cut off.'), 'It is cut off.'),
        (BidsharmError('It is cut off.', where='a.nii'), 'a.nii: It is cut off.'),
        (BidsharmError('It is cut off.', fix='Copy it again.'), 'It is cut off. Copy it again.'),
        (BidsharmError('It is.', where='a', fix='Mend.'), 'a: It is. Mend.'),
    ],
)
def test_sentence(error, text):
    assert str(error) == text


@pytest.mark.parametrize('kind', KINDS)
def test_errors_survive_worker_processes(kind):
    error = kind('what', where='where', fix='fix')
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.what, again.where, again.fix, str(again)) == ('what', 'where', 'fix', str(error))
    assert again.exit_code == kind.exit_code


def test_exit_codes_are_those_of_the_documentation():
    assert {kind.__name__: int(kind.exit_code) for kind in KINDS} == {
        'BidsharmError': 1, 'ScanError': 1, 'NotServed': 1, 'UsageError': 2, 'MissingNeed': 2, 'NothingToDo': 3,
        'ConfigurationError': 78,
    }  # fmt: skip
    assert int(ExitCode.INTERNAL) == 70


def test_what_is_not_served_is_about_a_scan():
    assert issubclass(NotServed, ScanError)
