"""Put the three programs of ANTs that bidsharm uses into a folder: ``fetch_ants.py URL SHA256 FOLDER``.

Without URL, or where it cannot be reached, the folder stays empty and antspyx serves. A file with another digest, or
programs that do not run here, are errors.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

PROGRAMS = ('N4BiasFieldCorrection', 'antsApplyTransforms', 'antsRegistration')


def main(url: str, digest: str, folder: Path) -> str:
    """Fetch, check and unpack; return what happened in words."""
    folder.mkdir(parents=True, exist_ok=True)
    if not url:
        return 'No ANTS_URL was given; antspyx serves.'
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        return f'ANTs cannot be reached ({error}); antspyx serves.'
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise SystemExit(f'ANTS_SHA256 is {digest or "not given"}, but the file at ANTS_URL has {found}.')
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for program in PROGRAMS:
            unpack(archive, program, folder)
    version = subprocess.run([folder / PROGRAMS[-1], '--version'], check=True, capture_output=True, text=True)
    return version.stdout.strip()


def unpack(archive: zipfile.ZipFile, program: str, folder: Path) -> None:
    """Take one program out of the archive, wherever it lies in it."""
    names = [name for name in archive.namelist() if name.rpartition('/')[2] == program]
    if len(names) != 1:
        raise SystemExit(f'The archive at ANTS_URL holds {program} {len(names)} times, not once.')
    file = folder / program
    file.write_bytes(archive.read(names[0]))
    file.chmod(0o755)


if __name__ == '__main__':
    print(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
