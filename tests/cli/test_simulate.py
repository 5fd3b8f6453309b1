"""``bidsharm-simulate``: what is refused before anything is written."""

from __future__ import annotations

import pytest

from bidsharm.cli.simulate import main
from bidsharm.errors import ExitCode


@pytest.mark.parametrize(
    ('option', 'text', 'wanted'),
    [
        *(('--subjects', text, 'a whole number above 0') for text in ('a', '0', '-1', '1.5', '²', '')),
        *(('--seed', text, 'a whole number, 0 or above') for text in ('a', '-1', '1.5', '²')),
    ],
)
def test_numbers_that_are_none(tmp_path, capsys, option, text, wanted):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / 'heads'), option, text])
    assert caught.value.code == ExitCode.USAGE
    assert f'argument {option}: {text!r} is not {wanted}' in capsys.readouterr().err
    assert not (tmp_path / 'heads').exists()
