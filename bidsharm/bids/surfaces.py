"""Maps of cortical surfaces in derivatives: finding them, bringing them to an icosphere, and writing what became of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.bids.atomic import atomic_path, write_json, write_text
from bidsharm.bids.dataset import derived_description, read_json
from bidsharm.bids.names import ScanFile, file_name, parse_name
from bidsharm.bids.sites import check_participants, site_by_rule
from bidsharm.errors import NothingToDo, ScanError, UsageError
from bidsharm.harmonizers.surface import HarmonizedSurface, SurfaceMap
from bidsharm.imaging.surfaces import (
    Resampling,
    Sphere,
    cortex,
    read_map,
    read_sphere,
    standard_sphere,
    write_map,
)

#: What the folder says of itself, by which it is known again.
GENERATOR = 'Harmonization of cortical surfaces across sites'
_EXTENSIONS = ('.shape.gii', '.func.gii')
_SIDES = {'lh': 'L', 'rh': 'R'}
#: Subjects that FreeSurfer ships.
_TEMPLATES = re.compile(r'^(fsaverage|[lr]h\.EC_average|cvs_avg)')


def find_maps(
    root: Path,
    measure: str,
    *,
    space: str = '',
    hemispheres: Sequence[str] = ('L', 'R'),
    site: str = '',
    participants: Path | None = None,
) -> list[ScanFile]:
    """Return the maps of one kind, each with its site.

    Parameters
    ----------
    root
        Derivatives in BIDS names (fMRIPrep), or a folder of FreeSurfer subjects.
    measure
        Suffix of the maps: ``thickness``, ``sulc``, ...
    space
        Entity ``space`` of the maps; ``native`` for those without. May be left away where there is one only.
    hemispheres
        Which.
    site
        Rule of the sites: ``session``, or columns of participants.tsv or fields of sidecars; empty for none.
    participants
        Folder with participants.tsv; that of the derivatives by default.

    Raises
    ------
    UsageError
        If the folder is not there, or the maps are in several spaces.
    NothingToDo
        If there is no such map.
    """
    if not root.is_dir():
        raise UsageError('The folder of the derivatives does not exist.', where=str(root))
    found = [*_in_bids(root, measure), *_in_freesurfer(root, measure)]
    found = [one for one in found if one.entities['hemi'] in hemispheres]
    spaces = sorted({one.entities.get('space', 'native') for one in found})
    if len(spaces) > 1 and not space:
        raise UsageError(
            f'The maps are in several spaces: {", ".join(spaces)}.', where=str(root), fix='Choose one with --space.'
        )  # fmt: skip
    found = [one for one in found if space in ('', one.entities.get('space', 'native'))]
    if not found:
        raise NothingToDo(
            f'There is no map "{measure}"' + (f' in the space "{space}".' if space else '.'), where=str(root),
            fix='Give derivatives with files like sub-01_hemi-L_thickness.shape.gii, or FreeSurfer subjects, and see --map.',
        )  # fmt: skip
    table, problems = check_participants(participants or root, follow_links=True)
    if problems:
        raise UsageError(problems[0], where=str(participants or root))
    return [replace(one, site=site_by_rule(one, table, site) if site else '') for one in found]


def _in_bids(root: Path, measure: str) -> Iterable[ScanFile]:
    for path in sorted(root.glob('sub-*/**/*.gii')):
        ending = next((ending for ending in _EXTENSIONS if path.name.endswith(ending)), '')
        parsed = parse_name(path.name)
        if not ending or parsed is None or parsed[1] != measure or parsed[0].get('desc') == 'harmonized':
            continue
        if parsed[0].get('hemi') not in ('L', 'R') or 'sub' not in parsed[0]:
            continue
        sidecar = read_json(path.with_name(path.name.removesuffix(ending) + '.json'))
        yield ScanFile(path, parsed[0], measure, root, metadata=sidecar)


def _in_freesurfer(root: Path, measure: str) -> Iterable[ScanFile]:
    for path in sorted(root.glob(f'*/surf/[lr]h.{measure}')):
        subject = path.parents[1].name
        if _TEMPLATES.match(subject):
            continue
        entities = dict(re.findall(r'(sub|ses)-([0-9A-Za-z]+)', subject)) or {
            'sub': re.sub(r'[^0-9A-Za-z]', '', subject)
        }
        yield ScanFile(path, {**entities, 'hemi': _SIDES[path.name[:2]]}, measure, root)


def sphere_of(scan: ScanFile, vertices: int, given: Mapping[str, Path]) -> Sphere:
    """Return the sphere that a map lies on, registered to fsaverage.

    Parameters
    ----------
    scan
        The map.
    vertices
        How many it has.
    given
        Files of spheres by hemisphere; they win.

    Raises
    ------
    ScanError
        If there is none, or it has another number of vertices.
    """
    side, space = scan.entities['hemi'], scan.entities.get('space', '')
    file = given.get(side) or _sphere_file(scan)
    if file is not None:
        sphere = read_sphere(file)
        if len(sphere.vertices) != vertices:
            raise ScanError(
                f'The map has {vertices} vertices, and its sphere {len(sphere.vertices)} ({file.name}).',
                where=scan.name, fix='Give the sphere that belongs to it with --sphere.',
            )  # fmt: skip
        return sphere
    if space.startswith('fsaverage'):
        standard = standard_sphere(vertices)
        if standard is None:
            raise ScanError(
                f'The map has {vertices} vertices, which no fsaverage has.', where=scan.name,
                fix='Look whether it is in this space, or give its sphere with --sphere.',
            )  # fmt: skip
        return standard
    raise ScanError(
        f'There is no sphere for this map (space {space or "of the person"}).', where=scan.name,
        fix=f'Give one that is registered to fsaverage with --sphere {side}=FILE'
        + (f', such as tpl-fsLR_space-fsaverage_hemi-{side}_den-32k_sphere.surf.gii of TemplateFlow.' if space == 'fsLR' else '.'),
    )  # fmt: skip


def _sphere_file(scan: ScanFile) -> Path | None:
    """Return the registered sphere of a person that lies beside a map."""
    if scan.path.suffix != '.gii':
        candidates = [scan.path.with_name(scan.path.name[:2] + '.sphere.reg')]
    elif 'space' not in scan.entities:
        own = {key: scan.entities[key] for key in ('sub', 'ses', 'acq', 'rec', 'run') if key in scan.entities}
        own |= {'hemi': scan.entities['hemi'], 'desc': 'reg'}
        names = [{**own, 'space': 'fsaverage'}, own]
        candidates = [scan.path.with_name(file_name(name, 'sphere', '.surf.gii')) for name in names]
    else:
        return None
    return next((file for file in candidates if file.is_file()), None)


@dataclass(frozen=True, eq=False)
class PlacedMap:
    """A map as it is in its file, and on the icosphere of a method.

    Parameters
    ----------
    scan
        Its file.
    values
        As they are in the file, shape (N,).
    cortex
        Where there are values that count, shape (N,).
    surface
        The map on the icosphere.
    there, back
        Ways to the icosphere, and from it.
    """

    scan: ScanFile
    values: NDArray[np.float32]
    cortex: NDArray[np.bool_]
    surface: SurfaceMap
    there: Resampling
    back: Resampling

    def changed(self, found: HarmonizedSurface) -> NDArray[np.float32]:
        """Return the harmonized map in the file's own vertices: the change is carried back, and what is no cortex stays."""
        if self.there.identity:
            return np.where(self.cortex, found.values, self.values).astype(np.float32)
        change = np.where(self.surface.cortex, found.values - self.surface.values, 0)
        moved = self.values + self.back.carry_everywhere(change, self.surface.cortex)
        return np.where(self.cortex, moved, self.values).astype(np.float32)


class Placer:
    """Brings maps to one icosphere; ways between spheres that several maps share are found once.

    Parameters
    ----------
    level
        Of the icosphere.
    spheres
        Files of spheres by hemisphere, for maps whose own are not beside them.
    """

    def __init__(self, level: int, spheres: Mapping[str, Path]) -> None:
        self.level, self.spheres = level, dict(spheres)
        self._last: list[tuple[Sphere, Resampling, Resampling]] = []

    def place(self, scan: ScanFile) -> PlacedMap:
        """Read a map and bring it to the icosphere.

        Raises
        ------
        ScanError
            If it cannot be read, or has no sphere that fits.
        """
        side = scan.entities['hemi']
        values = read_map(scan.path, side)
        there, back = self._ways(sphere_of(scan, len(values), self.spheres))
        inside = cortex(values)
        moved, valid = there.carry(values, inside)
        surface = SurfaceMap(
            moved, valid, side, scan.suffix, name=map_name(scan), site=scan.site, person=scan.subject
        )
        return PlacedMap(scan, values, inside, surface, there, back)

    def _ways(self, sphere: Sphere) -> tuple[Resampling, Resampling]:
        for known, there, back in self._last:
            if known.same_as(sphere):
                return there, back
        target = Sphere.of_level(self.level)
        there, back = Resampling(sphere, target), Resampling(target, sphere)
        # Two hemispheres of a group, or of a person, follow each other.
        self._last = [(sphere, there, back), *self._last[:1]]
        return there, back


def map_name(scan: ScanFile) -> str:
    """Return the name of a map in messages: that of its file in BIDS."""
    return file_name(scan.entities, scan.suffix)


def out_path(scan: ScanFile, out: Path) -> Path:
    """Return where the harmonized map goes."""
    visit = f'ses-{scan.session}/' if scan.session else ''
    ending = next((ending for ending in _EXTENSIONS if scan.path.name.endswith(ending)), _EXTENSIONS[0])
    name = file_name({**scan.entities, 'desc': 'harmonized'}, scan.suffix, ending)
    return out / f'sub-{scan.subject}/{visit}anat/{name}'


def check_outputs(scans: Sequence[ScanFile], out: Path) -> None:
    """Refuse maps whose results would have one name.

    Raises
    ------
    UsageError
        Naming two of them.
    """
    seen: dict[Path, ScanFile] = {}
    for scan in scans:
        other = seen.setdefault(out_path(scan, out), scan)
        if other is not scan:
            raise UsageError(
                f'Two maps would become one file: {other.relative} and {scan.relative}.', where=str(scan.root),
                fix='Take one of them out of the folder, or choose with --space.',
            )  # fmt: skip


def write_harmonized(
    placed: PlacedMap, found: HarmonizedSurface, out: Path, record: Mapping[str, Any]
) -> Path:
    """Write a harmonized map and its sidecar.

    Parameters
    ----------
    placed
        What went in.
    found
        What came out.
    out
        Folder of the derivatives.
    record
        What is said about the method.
    """
    scan, path = placed.scan, out_path(placed.scan, out)
    with atomic_path(path) as temporary:
        write_map(temporary, placed.changed(found), scan.entities['hemi'], like=scan.path)
    units = {'Units': scan.metadata['Units']} if 'Units' in scan.metadata else {}
    way = 'The change was carried between spheres by barycentric coordinates.'
    write_json(
        path.with_name(path.name.removesuffix(''.join(path.suffixes[-2:])) + '.json'),
        {
            'Description': f'{scan.suffix}, as if the site {record["Target"]} had measured it.'
            + ('' if placed.there.identity else f' {way}'),
            'Sources': [f'bids:surfaces:{scan.relative}'],
            **units,
            'Harmonization': {
                **record,
                'Site': scan.site,
                'Details': found.details,
                'Warnings': list(found.warnings),
            },
        },
    )
    return path


def prepare_out(root: Path, out: Path) -> None:
    """Write what makes the folder a BIDS data set."""
    content = derived_description(
        root, GENERATOR, command='bidsharm-surface', usual='harmonized surfaces', link='surfaces'
    )
    write_json(out / 'dataset_description.json', content)
    # Maps on surfaces have no suffix of BIDS yet.
    write_text(out / '.bidsignore', '*.html\nmodels\ntraining\n*_desc-harmonized_*\n')
    write_text(
        out / 'descriptions.tsv', 'desc_id\tdescription\ndesc-harmonized\tAs the target site would have measured it\n'
    )  # fmt: skip
    if not (out / 'README.md').exists():
        write_text(
            out / 'README.md', '# Harmonized cortical surfaces\n\nWritten by bidsharm-surface; see surfaces.html.\n'
        )  # fmt: skip
