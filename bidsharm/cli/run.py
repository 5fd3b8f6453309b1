"""``bidsharm BIDS OUT participant|group``."""

from __future__ import annotations

import os
import sys

from bidsharm.errors import BidsharmError, ExitCode


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
    """Keep libraries from asking the network for news or needing a home folder."""
    import tempfile

    os.environ['NO_ET'] = '1'
    os.environ.setdefault('MPLBACKEND', 'Agg')
    home = os.environ.get('HOME', '')
    if not home or not os.access(home, os.W_OK):
        # nipype and matplotlib insist on a folder of their own.
        os.environ['HOME'] = tempfile.mkdtemp(prefix='bidsharm-home-')


def _complain(error: BidsharmError) -> int:
    print(f'bidsharm: {error}', file=sys.stderr)
    return int(error.exit_code)


if __name__ == '__main__':
    sys.exit(main())
