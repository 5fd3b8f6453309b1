"""``bidsharm BIDS OUT participant|group``."""

from __future__ import annotations

import os
import sys

from bidsharm.errors import BidsharmError, ConfigurationError, ExitCode


def main(argv: list[str] | None = None) -> int:
    """Run the app and return its exit code."""
    from bidsharm.cli.parser import parse_settings

    try:
        settings = parse_settings(argv)
        quiet_libraries()
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        if settings.analysis_level == 'group':
            from bidsharm.workflows.group import run_group

            return int(run_group(settings, console))
        from bidsharm.workflows.participant import run_participant

        return int(run_participant(settings, console))
    except BidsharmError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print(
            'bidsharm: stopped; what is finished is kept, the same command goes on from there.',
            file=sys.stderr,
        )
        return int(ExitCode.SCAN_FAILED)
    except Exception:  # noqa: BLE001 - the last resort: a traceback, and a code that says it was our fault
        import traceback

        traceback.print_exc()
        print('bidsharm: an internal error; please report the lines above.', file=sys.stderr)
        return int(ExitCode.INTERNAL)


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
    import shutil
    import tempfile

    try:
        home = tempfile.mkdtemp(prefix='bidsharm-home-')
    except OSError as error:
        raise ConfigurationError(
            'There is no folder for temporary files.',
            where=os.environ.get('TMPDIR', '/tmp'),
            fix='Set TMPDIR to a folder that can be written; with docker run --read-only, add --tmpfs /tmp.',
        ) from error
    os.environ['HOME'] = home
    owner = os.getpid()

    def take_back() -> None:
        # A forked worker ends too, and must not take the folder from the others.
        if os.getpid() == owner:
            shutil.rmtree(home, ignore_errors=True)

    atexit.register(take_back)


def _complain(error: BidsharmError) -> int:
    print(f'bidsharm: {error}', file=sys.stderr)
    return int(error.exit_code)


if __name__ == '__main__':
    sys.exit(main())
