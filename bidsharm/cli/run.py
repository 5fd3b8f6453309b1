"""``bidsharm BIDS OUT participant|group``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ConfigurationError


def main(argv: list[str] | None = None) -> int:
    """Run the app and return its exit code."""
    return run_to_end(
        'bidsharm',
        lambda: _run(argv),
        stopped='stopped; what is finished is kept, the same command goes on from there.',
    )


def _run(argv: list[str] | None) -> int:
    from bidsharm.cli.parser import parse_settings

    settings = parse_settings(argv)
    quiet_libraries()
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=settings.log_json)
    arguments = sys.argv[1:] if argv is None else argv
    if settings.analysis_level == 'group':
        from bidsharm.workflows.group import run_group

        return int(run_group(settings, console, arguments))
    from bidsharm.workflows.participant import run_participant

    return int(run_participant(settings, console, arguments))


def quiet_libraries() -> None:
    """Keep libraries from asking the network for news or needing a home folder.

    Raises
    ------
    ConfigurationError
        If there is no folder for temporary files.
    """
    os.environ['NO_ET'] = '1'
    os.environ.setdefault('MPLBACKEND', 'Agg')
    home = os.environ.get('HOME', '')
    if not home or not os.access(home, os.W_OK):
        _lend_home()


def _lend_home() -> None:
    """Give nipype and matplotlib, which insist on one, a home folder for as long as this run lasts."""
    import atexit
    import tempfile
    from pathlib import Path

    from bidsharm.temporary import temporary_folder

    folder = ExitStack()
    try:
        home = folder.enter_context(temporary_folder('bidsharm-home', Path(tempfile.gettempdir())))
    except OSError as error:
        raise ConfigurationError(
            'There is no folder for temporary files.',
            where=os.environ.get('TMPDIR', '/tmp'),
            fix='Set TMPDIR to a folder that can be written; with docker run --read-only, add --tmpfs /tmp.',
        ) from error
    os.environ['HOME'] = str(home)
    owner = os.getpid()

    def take_back() -> None:
        # A forked worker ends too, and must not take the folder from the others.
        if os.getpid() == owner:
            folder.close()

    atexit.register(take_back)


if __name__ == '__main__':
    sys.exit(main())
