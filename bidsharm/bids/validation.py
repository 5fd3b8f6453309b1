"""The BIDS validator, where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

#: The validator may take this long (seconds) before the run goes on without it.
LIMIT_S = 600


def find_validator() -> str | None:
    """Return the path of the BIDS validator: the one of this environment, else one on the PATH, else None."""
    beside = Path(sys.executable).with_name('bids-validator-deno')
    if beside.exists():
        return str(beside)
    return shutil.which('bids-validator-deno') or shutil.which('bids-validator')


def validate(bids_dir: Path) -> str:
    """Run the validator and return what it found, in a sentence; an empty string when all is well.

    Errors do not end a run: one badly named file should not cost the others. A validator that is not
    installed, or does not answer, is named, not hidden.
    """
    program = find_validator()
    if program is None:
        return 'The BIDS validator is not installed (pip install "bidsharm[validate]"); the data set was not validated.'
    try:
        done = subprocess.run(
            [program, str(bids_dir), '--json', '--ignoreWarnings'], capture_output=True, text=True,
            timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        issues = json.loads(done.stdout)['issues']['issues']
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        return f'The BIDS validator gave no answer ({type(error).__name__}); the data set was not validated.'
    codes = Counter(str(issue.get('code')) for issue in issues if issue.get('severity', 'error') == 'error')
    if not codes:
        return ''
    named = ', '.join(f'{code} ({count})' for code, count in codes.most_common(5))
    return f'The BIDS validator reports {sum(codes.values())} errors: {named}. The run goes on with what is readable.'
