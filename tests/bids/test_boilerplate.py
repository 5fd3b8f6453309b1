"""The method section names what was done, and nothing else."""

from __future__ import annotations

import re

import pytest

from bidsharm import __version__
from bidsharm.bids.boilerplate import REFERENCES, Boilerplate, write_boilerplate

CARD = {'title': 'Robust scaling', 'paper': 'Doe, J. (2001). Scaling', 'doi': '10.1/x', 'fidelity': 'exact'}


def entries(bibtex: str) -> dict[str, dict[str, str]]:
    """Read BibTeX by its grammar: entries and fields in balanced braces. Anything else is an error."""
    found, position = {}, 0
    while match := re.compile(r'\s*@(\w+)\{([^,\s]+),').match(bibtex, position):
        position, fields = match.end(), {}
        while field := re.compile(r'\s*(\w+)\s*=\s*\{').match(bibtex, position):
            depth, position = 1, field.end()
            start = position
            while depth:
                if bibtex[position] == '\\':
                    position += 1
                else:
                    depth += {'{': 1, '}': -1}.get(bibtex[position], 0)
                position += 1
            fields[field[1]] = bibtex[start : position - 1]
            comma = re.compile(r'\s*,').match(bibtex, position)
            position = comma.end() if comma else position
        end = re.compile(r'\s*\}').match(bibtex, position)
        assert end, bibtex[position : position + 40]
        position, found[match[2]] = end.end(), fields
    assert not bibtex[position:].strip(), bibtex[position:]
    return found


@pytest.fixture
def write(tree):
    def written(
        card=CARD, *, target='canonical', ants='ANTs 2.5', contrasts=('T1w',), **values
    ) -> Boilerplate:
        return write_boilerplate(
            tree.settings(**values), card=dict(card), target=target, ants=ants, contrasts=tuple(contrasts)
        )

    return written


def test_limits_and_reused_files_are_told_as_they_were(write):
    assert 'with fixed limits.' in write().text
    changed = write(qc_thresholds={'dice_gm': {'warn': 0.95, 'fail': 0.9}}).text
    assert 'changed from the defaults: dice_gm' in changed
    assert 'fixed limits' not in changed
    assert 'replaced the corresponding step' not in write().text
    assert 'Where smriprep held' in write(derivatives={'smriprep': '/x'}).text


def test_a_paper_that_ends_with_a_full_stop_gets_no_second_one(write):
    for paper in ('Doe, J. 2019.', 'Doe, J. 2019'):
        lines = write({**CARD, 'paper': paper}).references
        assert lines[-1] == 'Doe, J. 2019. doi:10.1/x'


def test_what_every_run_does_is_named(write):
    text = write(target='northA', harmonizer='robust', random_seed=17).text
    for word in (f'bidsharm {__version__}', 'N4 (ANTs 2.5)', 'Robust scaling', 'Doe, J. (2001)', '"robust"', 'target: northA',
                 'seed 17', 'exact', 'deepbet', 'affine'):  # fmt: skip
        assert word in text, word
    assert 'SyN' not in text


@pytest.mark.parametrize(
    ('values', 'named', 'absent'),
    [
        ({}, ['deepbet', 'already skull-stripped'], ['a mask was given']),
        ({'brain_extraction': 'ants'}, ['registering the template', 'already skull-stripped (by deepbet)'], ['with deepbet']),
        ({'brain_extraction': 'ants', 'skull_strip': 'force'}, ['registering the template'], ['deepbet']),
        ({'skull_strip': 'skip'}, ['taken as skull-stripped'], ['deepbet', 'was extracted']),
        ({'skull_strip': 'skip', 'brain_extraction': 'ants'}, ['taken as skull-stripped'], ['was extracted']),
        ({'skull_strip': 'force'}, ['with deepbet.'], ['already skull-stripped']),
        ({'derivatives': {'smriprep': '/x'}}, ['deepbet, unless', 'a mask was given'], []),
        ({'derivatives': {'smriprep': '/x'}, 'skull_strip': 'force'}, ['deepbet, unless a mask was given'], ['already']),
        ({'registration': 'syn'}, ['affine, then SyN'], []),
    ],
)  # fmt: skip
def test_only_what_can_have_run_is_named(write, values, named, absent):
    written = write(**values)
    assert [word for word in named if word not in written.text] == []
    assert [word for word in absent if word in written.text] == []
    assert ('deepbet' in written.keys) is ('deepbet' in written.text)
    assert (
        ('deepbet' in written.to_markdown())
        is ('deepbet' in written.to_bibtex())
        is ('deepbet' in written.text)
    )


@pytest.mark.parametrize(
    ('spaces', 'cited'),
    [
        (['native'], False),
        (['native', 'T1w'], False),
        (['MNI152NLin2009aSym'], False),
        (['MNI152NLin2009aSym:res-2'], False),
        (['native', 'MNI152NLin2009cAsym:res-1'], True),
    ],
)
def test_templateflow_is_cited_where_it_was_used(write, spaces, cited):
    assert ('templateflow' in write(output_spaces=spaces).keys) is cited


def test_contrasts_that_follow(write):
    assert 'rigidly' not in write(contrasts=['T1w']).text
    assert 'T2w, FLAIR images were registered rigidly' in write(contrasts=['T1w', 'T2w', 'FLAIR']).text


def test_markdown_and_bibtex_cite_the_same(write):
    written = write(output_spaces=['MNI152NLin2009cAsym'])
    found = entries(written.to_bibtex())
    assert set(found) == {*written.keys, 'harmonizer'}
    assert len(written.keys) == len(set(written.keys))
    for key in written.keys:
        doi = REFERENCES[key][4]
        assert found[key]['doi'] == doi
        assert f'doi:{doi}' in written.to_markdown()
    assert found['harmonizer'] == {'note': CARD['paper'], 'doi': CARD['doi']}
    assert f'- {CARD["paper"]}. doi:10.1/x' in written.to_markdown()


def test_every_reference_can_be_resolved():
    for key, (authors, year, title, journal, doi) in REFERENCES.items():
        assert re.fullmatch(r'10\.\d{4,}/\S+', doi), key
        assert 1990 < int(year) < 2030, key
        assert authors, key
        assert not title.endswith('.'), key
        assert not journal.endswith('.'), key
    assert len({doi for *_, doi in REFERENCES.values()}) == len(REFERENCES)


def test_a_method_without_paper(write):
    written = write({'title': 'Nothing', 'paper': '', 'doi': ''})
    assert 'harmonizer' not in entries(written.to_bibtex())
    assert len(written.references) == len(written.keys)


@pytest.mark.parametrize('paper', ['A } B', '{', '50 % of R&D, $x_1$ #2', r'a\b', 'é {"x"} ~^'])
def test_any_paper_is_one_bibtex_field(write, paper):
    """Cards come from other people's packages."""
    found = entries(write({**CARD, 'paper': paper, 'doi': '10.1/a_b'}).to_bibtex())
    assert 'nipype' in found
    assert found['harmonizer']['doi'] == '10.1/a_b', 'a DOI is an address, copied as it is'
    plain = re.sub(r'\\textbackslash ', lambda _: '\\\\', found['harmonizer']['note'])
    assert re.sub(r'\\(.)', r'\1', plain) == paper
    assert not re.search(r'(?<!\\)[%&#$_]', found['harmonizer']['note'])
