"""The image, built and run as a site with strict rules would run it.

A read-only root file system, no network, a user id that is not in the image, no home folder, the data mounted read-only,
4 GB of memory. Writable are the output folder and a temporary file system on /tmp.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from containers import IMAGE, USER, Containers, build, check_results, containers, data_set, open_folder
from stages import Stage

SBOM = '/opt/bidsharm/share/bidsharm/sbom.json'


def run(stage: Stage) -> None:
    """Build the image, look into it, run it under restrictions and by ``bidsharm-docker``."""
    use = containers(stage)
    build(stage, use)
    look_inside(stage, use)
    data, subject = data_set(stage)
    out = open_folder(stage.work / 'out')
    harmonize(stage, use, data, subject, out)
    fail(stage, use)
    wrap(stage, use, data, subject)


def restricted(use: Containers, *more: str | Path) -> list[str | Path]:
    """Return the start of a command that runs under all restrictions."""
    if use.program == 'podman':  # it gives a writable /tmp, /run and /var/tmp otherwise
        more = ('--read-only-tmpfs=false', *more)
    return [
        use.program, 'run', '--rm', '--read-only', '--tmpfs', '/tmp', '--network', 'none', '--user', f'{USER}:{USER}',
        '--memory', '4g', '--memory-swap', '4g', '--env', 'HOME=/nowhere', *more,
    ]  # fmt: skip


def look_inside(stage: Stage, use: Containers) -> None:
    """Sizes, labels, the list of what is inside, and the small commands."""
    stage.say('The layers and their sizes:')
    stage.run([use.program, 'history', '--format', '{{.Size}} {{.CreatedBy}}', IMAGE], tail=16, env=use.env)
    labels = stage.run(
        [use.program, 'image', 'inspect', '--format', '{{json .Config.Labels}}', IMAGE], env=use.env
    )
    stage.check('org.bids-app.analysis-levels' in labels and 'org.opencontainers.image.licenses' in labels, 'the labels are there')  # fmt: skip
    stage.say('Small commands, under all restrictions:')
    version = stage.run([*restricted(use), IMAGE, '--version'], env=use.env)
    stage.check(version.strip() == IMAGE.replace(':', ' '), 'it tells its version')
    text = stage.run([*restricted(use), IMAGE, '--help'], tail=3, env=use.env)
    stage.check('--participant-label' in text, 'it tells its options')
    stage.run([*restricted(use), '--entrypoint', 'bidsharm-models', IMAGE, 'list'], tail=4, env=use.env)
    stage.run([*restricted(use), '--entrypoint', 'touch', IMAGE, '/opt/here'], expect=1, env=use.env)
    inside = json.loads(
        stage.run([*restricted(use), '--entrypoint', 'cat', IMAGE, SBOM], env=use.env, quiet=True)
    )
    names = {item['name'] for item in inside['components']}
    stage.check(
        inside['bomFormat'] == 'CycloneDX' and {'torch', 'antspyx', 'nipype', 'libc6', 'python'} <= names,
        f'{SBOM} is a CycloneDX list; it holds the Python libraries, the Debian packages and the weights',
    )


def harmonize(stage: Stage, use: Containers, data: Path, subject: str, out: Path) -> None:
    """Run both levels on one scan."""
    stage.say('One scan, under all restrictions:')
    start = restricted(use, '-v', f'{data}:/data:ro', '-v', f'{out}:/out')
    stage.run(
        [*start, IMAGE, '/data', '/out', 'participant', '--participant-label', subject, '--contrasts', 'T1w'],
        env=use.env,
    )
    check_results(stage, out, subject)
    owners = {path.stat().st_uid for path in out.rglob('*')}
    stage.check(
        use.program == 'docker' or os.getuid() != 0 or owners == {USER}, f'the files belong to user {USER}'
    )
    about = json.loads((out / 'dataset_description.json').read_text())['GeneratedBy'][0]
    stage.check(
        about['Container'] == {'Type': 'docker', 'Tag': IMAGE}, 'dataset_description.json names the image'
    )
    stage.run([*start, IMAGE, '/data', '/out', 'group'], env=use.env)
    stage.check(
        (out / 'group.html').is_file() and (out / 'group_T1w.tsv').is_file(),
        'the group has its page and table',
    )


def fail(stage: Stage, use: Containers) -> None:
    """A scan that cannot be read ends the run with 1."""
    stage.say('A scan that is cut off:')
    data, out = stage.work / 'broken', open_folder(stage.work / 'broken-out')
    (data / 'sub-01' / 'anat').mkdir(parents=True)
    (data / 'dataset_description.json').write_text('{"Name": "broken", "BIDSVersion": "1.10.0"}')
    (data / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz').write_bytes(b'\x1f\x8b' + bytes(8))
    start = restricted(use, '-v', f'{data}:/data:ro', '-v', f'{out}:/out')
    stage.run(
        [*start, IMAGE, '/data', '/out', 'participant', '--skip-bids-validation'], expect=1, env=use.env
    )
    stage.check((out / 'sub-01.html').is_file(), 'its report says what happened')


def wrap(stage: Stage, use: Containers, data: Path, subject: str) -> None:
    """Run by ``bidsharm-docker``: it prints the command that it becomes."""
    stage.say(
        'The same by bidsharm-docker, with paths of this machine, a working folder and a reference image:'
    )
    out, work = stage.work / 'wrapped', stage.work / 'scratch'
    target = next(data.glob(f'sub-{subject}/**/anat/*_T1w.nii.gz'))
    program = Path(sys.executable).with_name('bidsharm-docker')
    told = stage.run(
        [program, '--engine', use.program, data, out, 'participant', '--participant-label', subject, '--contrasts', 'T1w',
         '-w', work, '--target', target, '--harmonizer', 'histogram', '--sloppy', '--skip-bids-validation'], env=use.env,
    )  # fmt: skip
    command = shlex.split(told.splitlines()[0])
    stage.check(
        command[:2] == [use.program, 'run'] and f'{data}:/data:ro' in command, 'the command is printed first'
    )
    stage.check((work / 'bidsharm_work').is_dir(), 'intermediate files are in the working folder')
    check_results(stage, out, subject)
