"""Complete the list of what is inside the image: ``sbom.py PYTHON.json PREFIX BIDSHARM_VERSION OUT.json``.

PYTHON.json holds the Python libraries, as ``cyclonedx-py environment`` writes them. Added are bidsharm itself, the Debian
packages of the base, the programs of ANTs if there are any, and the weights of networks with their digests. The result is
checked against the schema of CycloneDX.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ANTS = Path('/opt/ants/bin')
#: Files of networks, below site-packages.
WEIGHTS = ('bidsharm/weights/**/*.safetensors', 'data/models/**/*.pt*')


def main(listed: Path, prefix: Path, version: str, out: Path) -> None:
    """Write the completed list."""
    content = json.loads(listed.read_text())
    content.setdefault('metadata', {})['component'] = {
        'type': 'application', 'bom-ref': 'bidsharm', 'name': 'bidsharm', 'version': version,
        'licenses': [{'license': {'id': 'Apache-2.0'}}],
    }  # fmt: skip
    content['components'] += [
        python(),
        *debian(),
        *ants(),
        *weights(prefix),
        *weights(Path('/app') / prefix.relative_to('/')),
    ]
    content['dependencies'] = [
        item for item in content.get('dependencies', []) if item['ref'] != 'root-component'
    ]
    text = json.dumps(content, indent=1, sort_keys=True)
    validate(text, content['specVersion'])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + '\n')
    print(f'{len(content["components"])} components')


def python() -> dict[str, Any]:
    """Return the interpreter, which is no Debian package in the official image."""
    version = platform.python_version()
    purl = f'pkg:generic/python@{version}'
    return {'type': 'platform', 'bom-ref': purl, 'name': 'python', 'version': version, 'purl': purl}


def debian() -> Iterator[dict[str, Any]]:
    """Yield the Debian packages."""
    form = '${binary:Package}\t${Version}\t${Architecture}\n'
    done = subprocess.run(['dpkg-query', '-W', '-f', form], check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        name, version, architecture = line.split('\t')
        name = name.partition(':')[0]
        purl = f'pkg:deb/debian/{name}@{version.replace("+", "%2B").replace(":", "%3A")}?arch={architecture}'
        yield {'type': 'library', 'bom-ref': purl, 'name': name, 'version': version, 'purl': purl}


def ants() -> Iterator[dict[str, Any]]:
    """Yield the programs of ANTs."""
    for file in sorted(ANTS.glob('*')):
        done = subprocess.run([file, '--version'], check=False, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if 'Version' in line and 'ANTs' in line]
        version = lines[0].split(':')[-1].strip() if lines else 'unknown'
        yield described(file, 'application', f'ANTs {file.name}', version)


def weights(prefix: Path) -> Iterator[dict[str, Any]]:
    """Yield the weights of networks below a prefix."""
    for pattern in WEIGHTS:
        for file in sorted(prefix.glob(f'lib/python3*/site-packages/{pattern}')):
            inside = file.relative_to(next(p for p in file.parents if p.name == 'site-packages'))
            yield described(file, 'machine-learning-model', str(inside), None)


def described(file: Path, kind: str, name: str, version: str | None) -> dict[str, Any]:
    """Return a file as a component."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = {
        'type': kind,
        'bom-ref': f'file:{name}',
        'name': name,
        'hashes': [{'alg': 'SHA-256', 'content': digest}],
    }
    return found | ({'version': version} if version else {})


def validate(text: str, version: str) -> None:
    """Refuse what the schema of CycloneDX does not allow."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.from_version(version)).validate_str(text)
    if error is not None:
        raise SystemExit(f'The list is not valid CycloneDX {version}: {error}')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
