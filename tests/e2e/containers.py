"""Container programs, the image, and the data that the stages ``image`` and ``apptainer`` use."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from stages import ROOT, Failed, Skip, Stage

from bidsharm import __version__

IMAGE = f'bidsharm:{__version__}'
BASE = 'docker.io/library/python:3.11-slim-bookworm'
#: Bytes that have to be free for a build. Measured: 8.2 GB at its height, of which 4.5 stay.
ROOM = 10e9
#: Arguments of the build that a machine may set, with BIDSHARM_ before their names.
ARGUMENTS = ('BASE', 'DEVICE', 'TORCH_INDEX', 'ANTS_URL', 'ANTS_SHA256', 'TEMPLATES')
#: The user inside: one that no machine has.
USER = 12345


@dataclass
class Containers:
    """A container program, what it needs on this machine, and what a build needs."""

    program: str
    env: dict[str, str] = field(default_factory=dict)
    build_options: list[str] = field(default_factory=list)
    stand_in: bool = False

    def ask(self, *words: str) -> str | None:
        """Return what the program answers, or None where it ends with an error."""
        done = subprocess.run(
            [self.program, *words], capture_output=True, text=True, env={**os.environ, **self.env}
        )
        return None if done.returncode else done.stdout.strip()

    def has(self, image: str) -> bool:
        """Return whether there is an image of this name."""
        return self.ask('image', 'inspect', image) is not None

    def forget_older(self, base: str) -> None:
        """Remove what builds on another base have left: no build can take its layers from there, and each has gigabytes.

        Only images without a name go, and only those that have the label of bidsharm.
        """
        made = self.ask('image', 'inspect', '--format', '{{json .Created}}', base)
        if made is not None:
            label = 'label=org.bids-app.name=bidsharm'
            self.ask('image', 'prune', '--force', '--filter', label, '--filter', f'until={json.loads(made)}')

    def room(self) -> tuple[str, int]:
        """Return the folder in which images are kept, and the free bytes there."""
        part = '{{.Store.GraphRoot}}' if self.program == 'podman' else '{{.DockerRootDir}}'
        folder = self.ask('info', '--format', part) or '/'
        while not Path(folder).exists():  # that of a virtual machine, or not made yet
            folder = str(Path(folder).parent)
        return folder, shutil.disk_usage(folder).free


def containers(stage: Stage) -> Containers:
    """Find a container program and base images.

    ``BIDSHARM_CONTAINER_BASE`` may name a program for machines that reach no image registry: called with a folder, it makes
    the base images and prints the lines that set variables and build.

    Raises
    ------
    Skip
        If there is neither.
    """
    script = os.environ.get('BIDSHARM_CONTAINER_BASE')
    if script:
        found = from_script(stage, script)
        if not shutil.which(found.program):
            raise Skip(f'{found.program} is not installed')
        return found
    program = next((name for name in ('docker', 'podman') if shutil.which(name)), None)
    if program is None:
        raise Skip('neither docker nor podman is installed')
    found = Containers(program)
    base = base_image()
    if not found.has(base) and not found.has(IMAGE):
        done = subprocess.run([program, 'pull', base], capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise Skip(
                f'the base image {base} cannot be had, and BIDSHARM_CONTAINER_BASE names no program that makes it'
            )
    return found


def base_image() -> str:
    """Return the name of the base image."""
    return os.environ.get('BIDSHARM_BASE', BASE)


def from_script(stage: Stage, script: str) -> Containers:
    """Let a program make the base images, once, and read what it prints.

    Raises
    ------
    Skip
        If it cannot.
    """
    folder = ROOT / 'build' / 'container-base'
    kept = folder / 'lines.txt'
    found = read_lines(kept.read_text()) if kept.is_file() else None
    if found is None or not found.has(BASE):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            text = stage.run([script, folder], timeout=1500, quiet=True)
        except (Failed, OSError) as error:
            raise Skip(f'the base images cannot be made: {str(error).splitlines()[-1]}') from error
        kept.write_text(text)
        found = read_lines(text)
    return found


def read_lines(text: str) -> Containers:
    """Read ``export NAME=VALUE`` and the options of ``podman build`` out of what such a program prints."""
    found = Containers('podman', stand_in=True)
    for line in text.splitlines():
        words = shlex.split(line)
        if words[:1] == ['export']:
            name, _, value = words[1].partition('=')
            found.env[name] = value
        elif words[1:2] == ['build']:
            found.program = words[0]
            found.build_options = words[2 : words.index('-t')]
    return found


def build(stage: Stage, use: Containers) -> None:
    """Build the image; what this machine alone needs stays out of the transcript.

    Raises
    ------
    Skip
        If there is too little room on the disk.
    """
    base = base_image()
    use.forget_older(base)
    folder, free = use.room()
    if free < ROOM:
        raise Skip(f'a build takes up to {ROOM / 1e9:.0f} GB in {folder}, where {free / 1e9:.1f} GB are free')
    command = [use.program, 'build', *use.build_options]
    stage.hidden[shlex.join(use.build_options) + ' '] = ''
    for name in ARGUMENTS:
        if value := os.environ.get(f'BIDSHARM_{name}'):
            stage.hidden[value] = name.lower()
            command += ['--build-arg', f'{name}={value}']
    if use.stand_in:
        stage.say(
            'No image registry is used: the base image is a stand-in of the same name, made from Debian packages with '
            "Debian's Python 3.11. Options of the build that this machine needs are left out."
        )
    command += ['-t', IMAGE, '.']
    told = stage.run(
        command, timeout=3000, env=use.env, quiet=True
    )  # hundreds of lines, and addresses of this machine
    use.forget_older(base)  # what had the name until now
    ends = [line for line in told.splitlines() if line.startswith(('trimmed from', 'Successfully tagged'))]
    stage.lines.append('\n'.join(['```', f'$ {shlex.join(command)}', *ends, '(exit code 0)', '```']))


def data_set(stage: Stage) -> tuple[Path, str]:
    """Return a data set and the label of the subject that is worked on: a real one, or a simulated head."""
    if stage.real is not None:
        return stage.real, 'adi'
    made = stage.work / 'heads'
    stage.run(
        [sys.executable, '-m', 'bidsharm.cli.simulate', made, '--subjects', '1', '--scanners', '1'],
        timeout=900,
    )
    names = [path.name.removeprefix('sub-') for path in made.glob('sub-*')]
    if len(names) != 1:
        raise Failed(f'one simulated subject was expected, there are {names}')
    return made, names[0]


def open_folder(path: Path) -> Path:
    """Make a folder that any user may write to, as the user inside is none of this machine."""
    path.mkdir(parents=True)
    path.chmod(0o777)
    return path


def check_results(stage: Stage, out: Path, subject: str) -> None:
    """Demand the files of a finished T1w, the report, the verdict, and no left-overs."""
    scans = list(out.glob(f'sub-{subject}/**/anat/*_desc-harmonized_T1w.nii.gz'))
    stage.check(len(scans) == 1, 'there is one harmonized T1w')
    stem = scans[0].name.removesuffix('_desc-harmonized_T1w.nii.gz')
    expected = [
        'desc-harmonized_T1w.json', 'desc-preproc_T1w.nii.gz', 'desc-brain_mask.nii.gz', 'dseg.nii.gz',
        'desc-harmonized_dseg.nii.gz', 'label-CSF_probseg.nii.gz', 'label-GM_probseg.nii.gz', 'label-WM_probseg.nii.gz',
        'from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5', 'from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5',
        'desc-T1w_qc.json',
    ]  # fmt: skip
    missing = [name for name in expected if not (scans[0].parent / f'{stem}_{name}').is_file()]
    stage.check(not missing, f'beside it are {", ".join(expected)}')
    stage.check(
        (out / f'sub-{subject}.html').stat().st_size > 50_000, f'sub-{subject}.html is a report with pictures'
    )
    hidden = [p.name for p in out.rglob('.*') if p.name != '.bidsignore' and p.suffix != '.lock']
    stage.check(not hidden, 'nothing temporary is left in the output folder')
