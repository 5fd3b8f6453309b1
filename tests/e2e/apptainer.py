"""Apptainer: the image as a SIF file under ``--cleanenv --containall``, or its conditions imposed by another program.

Apptainer runs an image with a read-only root, as the user who calls, without privileges, with nothing of the caller's
environment and home, and with 64 MB for temporary files. Where it is not installed, podman or docker run the image under
the same conditions, and what ``Apptainer.def`` says is done by a shell.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from containers import IMAGE, USER, Containers, build, check_results, containers, data_set, open_folder
from stages import ROOT, Stage


def run(stage: Stage) -> None:
    """Run one scan under Apptainer, or under its conditions."""
    program = next((name for name in ('apptainer', 'singularity') if shutil.which(name)), None)
    use = containers(stage)
    if not use.has(IMAGE):
        build(stage, use)
    data, subject = data_set(stage)
    out = open_folder(stage.work / 'out')
    if program:
        stage.say(f'{program} is installed, and runs the image:')
        start = with_apptainer(stage, use, program, data, out)
    else:
        stage.say(
            f'Neither apptainer nor singularity is installed. Their conditions are imposed by {use.program}: read-only root, '
            'no privileges, a user that is not in the image, no home folder, no network, 64 MB for temporary files. The '
            'environment and the command are those of Apptainer.def.'
        )
        start = with_other(use, data, out)
    stage.run([*start, '--version'], env=use.env)
    stage.run(
        [*start, '/data', '/out', 'participant', '--participant-label', subject, '--contrasts', 'T1w', '--skip-bids-validation'],
        env=use.env,
    )  # fmt: skip
    check_results(stage, out, subject)
    settings = next((out / 'logs').glob('*/settings.toml')).read_text()
    stage.check(
        'work_dir' not in settings, 'this worked without a working folder, with 64 MB for temporary files'
    )
    about = (out / 'dataset_description.json').read_text()
    stage.check(
        '"singularity"' in about, 'dataset_description.json says that it was run by Singularity or Apptainer'
    )


def with_apptainer(stage: Stage, use: Containers, program: str, data: Path, out: Path) -> list[str | Path]:
    """Build the SIF file and return the start of a command that runs it."""
    archive, sif = stage.work / 'bidsharm.tar', stage.work / 'bidsharm.sif'
    # docker writes this format by default, podman when it is told
    kind = ['--format', 'docker-archive'] if use.program == 'podman' else []
    stage.run([use.program, 'save', *kind, '-o', archive, IMAGE], env=use.env)
    stage.run([program, 'build', '--build-arg', f'ARCHIVE={archive}', sif, ROOT / 'Apptainer.def'], tail=2)
    return [
        program, 'run', '--cleanenv', '--containall', '--net', '--network', 'none',
        '-B', f'{data}:/data:ro', '-B', f'{out}:/out', sif,
    ]  # fmt: skip


def with_other(use: Containers, data: Path, out: Path) -> list[str | Path]:
    """Return the start of a command that runs the image under Apptainer's conditions."""
    sections = read_definition((ROOT / 'Apptainer.def').read_text())
    tmpfs = ['--read-only-tmpfs=false'] if use.program == 'podman' else []
    return [
        use.program, 'run', '--rm', '--read-only', *tmpfs, '--tmpfs', '/tmp:size=64m', '--network', 'none',
        '--user', f'{USER}:{USER}', '--cap-drop', 'all', '--security-opt', 'no-new-privileges', '--env', 'HOME=/nowhere',
        '--workdir', '/', '-v', f'{data}:/data:ro', '-v', f'{out}:/out', '--entrypoint', 'sh', IMAGE,
        '-c', f'{sections["environment"]}; {sections["runscript"]}', 'bidsharm',
    ]  # fmt: skip


def read_definition(text: str) -> dict[str, str]:
    """Return the sections of a definition file, their commands in one line."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith('%'):
            lines = found.setdefault(line[1:].strip(), [])
        elif line.strip() and not line.strip().startswith('#'):
            lines.append(line.strip())
    return {name: '; '.join(lines) for name, lines in found.items()}
