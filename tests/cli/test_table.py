"""The command for tables: from files to files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsharm.bids.feature_tables import Choice, feature_table, read_table
from bidsharm.cli.table import build_parser, main
from bidsharm.errors import ExitCode
from bidsharm.harmonizers import bundle


def write(folder: Path, rows: int = 90, seed: int = 0, name: str = 'volumes', sites: str = 'ABC') -> Path:
    """Write a table in FreeSurfer's form and participants.tsv, with known effects of site and age."""
    rng = np.random.default_rng(seed)
    site = np.arange(rows) % len(sites)
    age = rng.uniform(20, 80, rows).round(1)
    shift = np.random.default_rng(1).normal(0, 3, (len(sites), 5))
    values = 100 + 0.05 * (age - 50)[:, None] + shift[site] + rng.normal(0, 1, (rows, 5))
    folder.mkdir(exist_ok=True)
    table, people = folder / f'{name}.tsv', folder / 'participants.tsv'
    lines = ['\t'.join(['Measure:volume', *(f'Region-{i}' for i in range(5))])]
    lines += ['\t'.join([f'sub-{seed}{i:03d}', *(f'{v:.4f}' for v in row)]) for i, row in enumerate(values)]
    table.write_text('\n'.join(lines) + '\n')
    told = ['participant_id\tsite\tage\tgroup']
    told += [f'sub-{seed}{i:03d}\t{sites[s]}\t{a}\t{"control" if i % 4 else "patient"}' for i, (s, a) in enumerate(zip(site, age, strict=True))]  # fmt: skip
    people.write_text('\n'.join(told) + '\n')
    return table


def run(table: Path, out: Path, *options: str) -> int:
    people = ['--participants', str(table.parent)]
    return main([str(table), str(out), *people, '--judge', 'fitted', '--permutations', '3', *options])


def means(path: Path, people: Path) -> np.ndarray:
    """Return the mean of each feature at each site."""
    from bidsharm.bids.feature_tables import read_participants_table

    table = feature_table(read_table(path), Choice(participants=read_participants_table(people)))
    return np.array([table.values[[s == site for s in table.sites]].mean(axis=0) for site in sorted(set(table.sites))])  # fmt: skip


def test_a_table_is_harmonized_with_dictionary_page_and_model(tmp_path: Path, capsys: Any) -> None:
    table = write(tmp_path / 'in')
    assert (
        main(
            [
                str(table),
                str(tmp_path / 'out'),
                '--participants',
                str(table.parent),
                '--keep',
                'age',
                '--permutations',
                '3',
            ]
        )
        == 0
    )
    out = tmp_path / 'out' / 'volumes_desc-harmonized.tsv'
    assert capsys.readouterr().out.strip() == str(out)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {out.name, f'{out.stem}.json', f'{out.stem}.html', 'models'}  # fmt: skip
    before, after = (read_table(path) for path in (table, out))
    assert before.columns == after.columns
    assert before.column('Measure:volume') == after.column('Measure:volume')
    assert np.ptp(means(table, table.parent), axis=0).max() > 2
    assert np.ptp(means(out, table.parent), axis=0).max() < 1
    record = json.loads(out.with_suffix('.json').read_text())['Harmonization']
    assert record['Method'] == 'combat'
    assert record['Kept'] == 'age'
    assert record['ModelDigest'] == bundle.digest(tmp_path / 'out' / 'models' / 'volumes')
    assert record['RowsLeft'] == []
    page = out.with_suffix('.html').read_text()
    assert 'Region-3' in page
    assert 'a fit that had not seen it' in page
    assert 'The median partial correlation of age' in page


def test_new_rows_get_what_was_learnt_from_others(tmp_path: Path) -> None:
    table = write(tmp_path / 'in')
    assert run(table, tmp_path / 'out', '--keep', 'age') == 0
    new = write(tmp_path / 'new', rows=30, seed=5)
    for model in (tmp_path / 'out' / 'models', tmp_path / 'out' / 'models' / 'volumes'):
        assert run(new, tmp_path / 'later', '--model', str(model)) == 0
    out = tmp_path / 'later' / 'volumes_desc-harmonized.tsv'
    assert not (tmp_path / 'later' / 'models').exists()
    method = bundle.load_any(tmp_path / 'out' / 'models' / 'volumes')
    from bidsharm.bids.feature_tables import read_participants_table

    rows = feature_table(
        read_table(new), Choice(kept=('age',), participants=read_participants_table(new.parent))
    )
    expected = method.harmonize(rows).values  # type: ignore[attr-defined]
    found = np.array([[float(cell) for cell in row[1:]] for row in read_table(out).rows])
    assert np.allclose(found, expected, atol=1e-6)
    record = json.loads(out.with_suffix('.json').read_text())['Harmonization']
    assert record['FittedRows'] == 'another table'


def test_several_tables_and_a_reference_site(tmp_path: Path) -> None:
    first = write(tmp_path / 'in')
    second = first.with_name('areas.tsv')
    second.write_text(first.read_text())
    options = [
        '--participants',
        str(first.parent),
        '--reference',
        'B',
        '--harmonizer',
        'covbat',
        '--judge',
        'fitted',
    ]
    options += ['--permutations', '3']
    assert main([str(first), str(second), str(tmp_path / 'out'), *options]) == 0
    lines = [
        (tmp_path / 'out' / f'{name}_desc-harmonized.tsv').read_text().splitlines()
        for name in ('volumes', 'areas')
    ]
    assert lines[0] == lines[1]
    before = first.read_text().splitlines()
    assert [a == b for a, b in zip(before[1:], lines[0][1:], strict=True)] == [i % 3 == 1 for i in range(90)]


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    table = write(tmp_path / 'in')
    digests = []
    for options in ([], ['--set', 'prior=none'], ['--harmonizer', 'covbat']):
        assert run(table, tmp_path / 'out', *options) == 0
        digests.append(bundle.digest(tmp_path / 'out' / 'models' / 'volumes'))
    assert len(set(digests)) == 3
    assert not list((tmp_path / 'out').rglob('.tmp*'))


def test_a_fit_on_controls_only(tmp_path: Path) -> None:
    table = write(tmp_path / 'in')
    assert run(table, tmp_path / 'out', '--fit-rows', 'group=control') == 0
    record = json.loads((tmp_path / 'out' / 'volumes_desc-harmonized.json').read_text())['Harmonization']
    assert record['FittedRows'] == 67
    assert run(table, tmp_path / 'out', '--fit-rows', 'group=nobody') == ExitCode.USAGE


def test_rows_that_cannot_be_harmonized_stop_it_unless_told_otherwise(tmp_path: Path, capsys: Any) -> None:
    table = write(tmp_path / 'in')
    people = table.parent / 'participants.tsv'
    people.write_text(people.read_text().replace('sub-0004\tB\t', 'sub-0004\tn/a\t'))
    assert run(table, tmp_path / 'out') == ExitCode.USAGE
    said = capsys.readouterr().err
    assert 'sub-0004' in said
    assert '--incomplete leave' in said
    assert not (tmp_path / 'out').exists()
    assert run(table, tmp_path / 'out', '--incomplete', 'leave') == 0
    assert 'sub-0004' in capsys.readouterr().err
    out = tmp_path / 'out' / 'volumes_desc-harmonized.tsv'
    assert out.read_text().splitlines()[5] == table.read_text().splitlines()[5]
    record = json.loads(out.with_suffix('.json').read_text())['Harmonization']
    assert record['RowsLeft'] == ['sub-0004']
    assert 'sub-0004' in out.with_suffix('.html').read_text()


def test_rows_of_a_site_that_a_model_does_not_know_stop_it(tmp_path: Path, capsys: Any) -> None:
    assert run(write(tmp_path / 'in'), tmp_path / 'out') == 0
    other = write(tmp_path / 'new', sites='AD', rows=20)
    assert run(other, tmp_path / 'later', '--model', str(tmp_path / 'out' / 'models')) == ExitCode.USAGE
    assert 'site "D", which was not fitted' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'code', 'said'),
    [
        (['--harmonizer', 'robust'], ExitCode.USAGE, '"robust" harmonizes no tables'),
        (['--harmonizer', 'combt'], ExitCode.USAGE, 'There is no harmonizer "combt"'),
        (['--keep', '__import__("os")'], ExitCode.USAGE, 'is no term of a formula'),
        (['--keep', 'agee'], ExitCode.USAGE, 'no column "agee"'),
        (['--keep', 's(age)'], ExitCode.USAGE, 'combat-gam'),
        (['--keep', 'C(site)'], ExitCode.USAGE, 'cannot be told from the sites'),
        (['--reference', 'Q'], ExitCode.USAGE, 'There are: A, B, C'),
        (['--set', 'prior=flat'], ExitCode.USAGE, "prior cannot be 'flat'. Give one of parametric"),
        (['--harmonizer', 'longcombat'], ExitCode.USAGE, 'several visits'),
        (['--site', 'group,nothing'], ExitCode.USAGE, 'no column "nothing"'),
        (['--model', 'nowhere'], ExitCode.CONFIGURATION, 'no model bundle'),
        (['--model', 'nowhere', '--keep', 'age'], ExitCode.USAGE, 'keeps what it was learnt with'),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, capsys: Any, options: list[str], code: ExitCode, said: str
) -> None:
    assert run(write(tmp_path / 'in'), tmp_path / 'out', *options) == code
    text = capsys.readouterr().err
    assert said in text
    assert text.count('\n') == 1
    assert text.startswith('bidsharm-table: ')
    assert not (tmp_path / 'out').exists()


def test_sites_too_small_for_parts_are_judged_as_they_are_unless_told_otherwise(
    tmp_path: Path, capsys: Any
) -> None:
    table = write(tmp_path / 'in', rows=9, sites='AB')
    people = ['--participants', str(table.parent), '--keep', 'age + group', '--permutations', '3']
    text = (table.parent / 'participants.tsv').read_text()
    (table.parent / 'participants.tsv').write_text(text.replace('patient', 'control', 2))
    assert main([str(table), str(tmp_path / 'out'), *people, '--judge', 'held-out']) == ExitCode.USAGE
    assert '--judge fitted' in capsys.readouterr().err
    assert main([str(table), str(tmp_path / 'out'), *people]) == 0
    assert 'flatters it' in (tmp_path / 'out' / 'volumes_desc-harmonized.html').read_text()


def test_names_that_clash_and_tables_that_are_done_are_refused(tmp_path: Path, capsys: Any) -> None:
    first, second = write(tmp_path / 'in'), write(tmp_path / 'more')
    assert main([str(first), str(second), str(tmp_path / 'out')]) == ExitCode.USAGE
    assert 'same name' in capsys.readouterr().err
    assert run(first, tmp_path / 'out') == 0
    assert run(tmp_path / 'out' / 'volumes_desc-harmonized.tsv', tmp_path / 'again', '--participants', str(first.parent)) == ExitCode.USAGE  # fmt: skip
    assert 'harmonized one' in capsys.readouterr().err


def test_a_table_with_hostile_names_makes_an_inert_page(tmp_path: Path) -> None:
    table = write(tmp_path / 'in')
    table.write_text(table.read_text().replace('Region-0', '<script>alert(1)</script>'))
    assert run(table, tmp_path / 'out') == 0
    assert '<script>alert' not in (tmp_path / 'out' / 'volumes_desc-harmonized.html').read_text()


def test_nothing_heavy_is_imported_at_start() -> None:
    import subprocess
    import sys

    code = 'import sys, bidsharm.cli.table as m; m.build_parser(); '
    code += "heavy = {'numpy', 'rich', 'torch', 'scipy', 'nibabel', 'pandas'} & set(sys.modules); "
    code += 'sys.exit(str(heavy) if heavy else 0)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


@pytest.mark.parametrize(
    'options', [['--set', 'prior'], ['--seed', '-1'], ['--fit-rows', 'x'], ['--judge', 'me']]
)
def test_the_parser_refuses(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(['a.tsv', 'out', *options])
    assert caught.value.code == 2
