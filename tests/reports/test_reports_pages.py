"""The pages: what they say, that nothing in them is live, and that they need nothing from outside."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bidsharm.evaluation import verdict
from bidsharm.reports import group, subject
from bidsharm.reports.subject import ErrorEntry, ScanEntry, SkippedEntry

HOSTILE = '"\'><script>alert(1)</script><img src=x onerror=alert(2)><a href="javascript:alert(3)">{{ 7*7 }}'
ERROR = ErrorEntry(
    'sub-01_ses-9_T1w', 'The image is empty.', 'anat/x.nii.gz', 'Convert it again.', 'Traceback: boom'
)


def check(
    name: str = 'dice', value: float | None = 0.97, verdict: str = 'pass', **more: Any
) -> dict[str, Any]:
    return {
        'name': name, 'label': f'Label of {name}', 'value': value, 'unit': '', 'warn': 0.9, 'fail': 0.8,
        'direction': 'min', 'verdict': verdict, 'meaning': f'Meaning of {name}.', **more,
    }  # fmt: skip


def qc(
    label: str = '01', site: str = 'siteA', verdict: str = 'pass', dark: float = 1.0, **more: Any
) -> dict[str, Any]:
    """A scan; ``dark`` bends its raw intensities as another scanner would."""
    share = np.linspace(0, 1, 101)
    edges = np.linspace(0, 1, 129).tolist()
    flat = {'edges': edges, 'density': [1.0] * 128}
    after = share + 0.002 * int(label)
    side = {
        'volume_csf_ml': 300.0,
        'volume_gm_ml': 650.0,
        'volume_wm_ml': 480.0,
        'cnr_gm_wm': 2.5,
        'p90': 0.9,
    }
    return {
        'subject': label, 'session': '1', 'scan': f'sub-{label}_ses-1_T1w', 'contrast': 'T1w', 'site': site,
        'harmonizer': {
            'name': 'histogram', 'title': 'Histogram matching', 'paper': 'Nyul 2000', 'doi': '10.1109/42.836373',
            'fidelity': 'faithful', 'changes_anatomy': False, 'model_digest': None, 'target': 'canonical',
            'device': 'cpu', 'precision': 'float32', 'seed': 0, 'seconds': 1.2,
        },
        'verdict': verdict,
        'checks': [check(verdict=verdict)],
        'measures': {
            'before': {**side, 'p90': float(700 * 0.9**dark)}, 'after': side,
            'change': {'p95_abs': 0.04, 'share_changed': 0.1},
        },
        'quantiles': {
            'before': (700 * share**dark).tolist(), 'after': after.tolist(), 'target': share.tolist(),
        },
        'histogram': {'before': flat, 'after': flat, 'target': flat},
        'warnings': ['The header was repaired.'], 'notes': {'bias field': 'N4'}, 'version': '0.1.0', **more,
    }  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.script, self._in = '', '', ''
        self.html = path.read_text(encoding='utf-8')
        self.feed(self.html)
        self.words = ' '.join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or '' for name, value in attrs}))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ''

    def handle_data(self, data: str) -> None:
        if self._in == 'script':
            self.script += data
        elif self._in != 'style':
            self.text += data


def assert_inert(page: Page) -> None:
    """Nothing runs but our script, and nothing is fetched."""
    for tag, attributes in page.tags:
        assert tag not in {'iframe', 'object', 'embed', 'link', 'base', 'form', 'use', 'image'}
        assert not [name for name in attributes if name.startswith('on')]
        assert attributes.get('src', 'data:').startswith('data:')
        target = attributes.get('href', '#')
        assert target.startswith(('#', 'https://doi.org/10.')) or not re.match(
            r'[a-z]+:|/', target, re.IGNORECASE
        )
    assert [tag for tag, _ in page.tags].count('script') == 1
    assert '@import' not in page.html
    assert 'url(' not in page.html
    policy = next(a['content'] for t, a in page.tags if a.get('http-equiv') == 'Content-Security-Policy')
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))
    links = {a['href'][1:] for _, a in page.tags if a.get('href', '').startswith('#')}
    assert links <= set(ids)


def poisoned(value: Any) -> Any:
    """Every text, and every free key, replaced by a hostile one."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.fixture
def figures(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f's_desc-{name}.webp' for name in subject.FIGURES}
    for path in paths.values():
        Image.new('RGB', (14, 6)).save(path)
    return paths


def test_a_page_has_every_section_and_the_verdict_first(tmp_path: Path, figures: dict[str, Path]) -> None:
    scans = [
        ScanEntry(qc('01'), figures, ['sub-01/anat/x.nii.gz']),
        ScanEntry(qc('01', scan='sub-01_ses-2_T1w'), figures),
        ScanEntry(qc('01', verdict='warn', scan='sub-01_ses-3_T1w', checks=[
            check('edges'), check('volume', 7.0, 'warn', unit='%', warn=5.0, fail=10.0, direction='max'),
        ])),
    ]  # fmt: skip
    out = subject.write_subject_report(
        tmp_path / 'deep' / 'sub-01.html', subject='01', scans=scans,
        skipped=[SkippedEntry('sub-01_acq-loc_T1w', 'A localizer.')], methods_text='# Data\nWe **did** it.',
        references=['Nyul 2000. doi:10.1109/42.836373.'], provenance={'Command': 'bidsharm a b'},
    )  # fmt: skip
    page = Page(out)
    assert_inert(page)
    assert page.words.index('2 of 3 scans passed; 1 needs a look.') < page.words.index('Scans')
    for heading in (
        'Before and after', 'What changed', 'Checks', 'Intensities and tissues', 'Brain mask', 'Registration',
        'Methods', 'References', 'Provenance', 'Errors', 'Left out', 'A localizer.', 'bidsharm a b', 'sub-01/anat/x.nii.gz',
    ):  # fmt: skip
        assert heading in page.words, heading
    assert 'Label of volume: 7.00 %, above 5 %.' in page.words  # the reason, with its limit
    assert 'at most 5 %' in page.words
    assert page.words.count('No errors.') == 1
    assert '<strong>did</strong>' in page.html
    assert ('a', {'href': 'https://doi.org/10.1109/42.836373', 'rel': 'noreferrer'}) in page.tags
    assert sum(tag == 'img' for tag, _ in page.tags) == 12
    assert [path.name for path in out.parent.iterdir()] == ['sub-01.html']


def test_the_checks_that_failed_come_first(tmp_path: Path) -> None:
    checks = [
        check('a', 0.99), check('b', None, 'not available'), check('c', 0.85, 'warn'), check('d', 0.5, 'fail'),
    ]  # fmt: skip
    assert [view['name'] for view in subject.checks_of({'checks': checks})] == ['d', 'c', 'a', 'b']


def test_viewer_works_without_scripts(tmp_path: Path, figures: dict[str, Path]) -> None:
    page = Page(
        subject.write_subject_report(tmp_path / 'a.html', subject='1', scans=[ScanEntry(qc(), figures)])
    )
    inputs = [a for tag, a in page.tags if tag == 'input' and a['type'] in ('radio', 'checkbox')]
    labels = {a['for'] for tag, a in page.tags if tag == 'label' and 'for' in a}
    assert {a['id'] for a in inputs} == labels
    assert [a for a in inputs if a['type'] == 'checkbox']
    assert 'prefers-reduced-motion' in page.html
    assert 'prefers-color-scheme: dark' in page.html


def test_only_errors_still_make_a_page(tmp_path: Path) -> None:
    page = Page(
        subject.write_subject_report(
            tmp_path / 'a.html', subject='01', scans=[], errors=[ERROR, ErrorEntry('', 'Odd.')]
        )
    )
    assert_inert(page)
    assert 'No scan was harmonized; 1 could not be processed.' in page.words
    assert ('div', {'class': 'banner', 'role': 'alert'}) in page.tags
    for text in (
        '2 errors during processing',
        'The image is empty.',
        'Convert it again.',
        'Traceback: boom',
        'Odd.',
    ):
        assert text in page.words
    assert ('details', {}) in page.tags  # closed


def test_nothing_at_all_still_makes_a_page(tmp_path: Path) -> None:
    page = Page(subject.write_subject_report(tmp_path / 'a.html', subject='01', scans=[]))
    assert 'No scan was harmonized.' in page.words
    assert_inert(page)


@pytest.mark.parametrize(
    ('verdicts', 'lost', 'sentence'),
    [
        (['pass'], 0, 'The scan passed'),
        (['pass'] * 3, 0, 'All 3 scans passed'),
        (['warn'], 0, 'The scan needs a look'),
        (['fail'], 0, 'The scan failed the checks'),
        (['pass', 'pass', 'warn'], 0, '2 of 3 scans passed; 1 needs a look'),
        (['pass', 'warn', 'warn', 'fail'], 1, '1 of 5 scans passed; 2 need a look; 1 failed; 1 could not be processed'),
        (['pass', 'odd'], 0, '1 of 2 scans passed; 1 could not be judged'),
        ([], 2, 'No scan was harmonized; 2 could not be processed'),
    ],
)  # fmt: skip
def test_the_overall_verdict_in_words(verdicts: list[str], lost: int, sentence: str) -> None:
    assert subject.overall(verdicts, lost)[1] == sentence


def test_hostile_texts_are_shown_and_inert_on_the_subject_page(
    tmp_path: Path, figures: dict[str, Path]
) -> None:
    bad = poisoned(qc())
    bad['notes'] = {HOSTILE: HOSTILE}
    bad['verdict'] = HOSTILE
    page = Page(
        subject.write_subject_report(
            tmp_path / 'a.html', subject=HOSTILE, scans=[ScanEntry(bad, figures, [HOSTILE])],
            skipped=[SkippedEntry(HOSTILE, HOSTILE)], errors=[ErrorEntry(*[HOSTILE] * 5)],
            methods_text=f'# {HOSTILE}\n\n**{HOSTILE}** `{HOSTILE}` doi:10.1000/{HOSTILE}',
            references=[HOSTILE, f'https://doi.org/10.1000/{HOSTILE}'], provenance={HOSTILE: HOSTILE},
        )
    )  # fmt: skip
    assert_inert(page)
    assert page.text.count('<script>alert(1)</script>') > 20
    assert '{{ 7*7 }}' in page.text


def test_hostile_texts_are_shown_and_inert_on_the_group_page(tmp_path: Path) -> None:
    bad = [poisoned(qc(f'{i:02d}', dark=1 + i / 9)) for i in range(4)]
    page = Page(
        group.write_group_report(
            tmp_path / 'g.html', scans=bad, failed=[ErrorEntry(*[HOSTILE] * 5)], title=HOSTILE,
            provenance={HOSTILE: HOSTILE}, report_links={HOSTILE: 'javascript:alert(1)'},
        )
    )  # fmt: skip
    assert_inert(page)
    assert page.text.count('<script>alert(1)</script>') > 20


@pytest.mark.parametrize(
    ('link', 'safe'),
    [
        ('sub-01.html', 'sub-01.html'),
        ('a b/sub-01.html', 'a%20b/sub-01.html'),
        ('javascript:alert(1)', ''),
        (' data:text/html,x', ''),
        ('//evil.example/x', ''),
        ('\\\\evil\\x', ''),
        ('../../x', ''),
        ('', ''),
    ],
)
def test_links_stay_beside_the_page(link: str, safe: str) -> None:
    assert group.safe_link(link) == safe


def missing(value: Any, nothing: Any) -> Any:
    if isinstance(value, dict):
        return {key: missing(item, nothing) for key, item in value.items()}
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return [nothing] * len(value)
    return [missing(item, nothing) for item in value] if isinstance(value, list) else nothing


@pytest.mark.parametrize('nothing', [None, float('nan'), float('inf')])
def test_missing_values_do_not_stop_a_page(tmp_path: Path, nothing: Any) -> None:
    empty = [missing(qc(), nothing), {}, qc(quantiles=None, histogram=None, measures=None, checks=None)]
    page = Page(
        subject.write_subject_report(
            tmp_path / 'a.html',
            subject='1',
            scans=[ScanEntry(one, {'before': tmp_path / 'gone.webp'}) for one in empty],
        )
    )
    assert_inert(page)
    assert 'not available' in page.words
    assert_inert(Page(group.write_group_report(tmp_path / 'g.html', scans=empty)))
    rows, dictionary = group.group_table(empty)
    assert all(set(row) == set(dictionary) for row in rows)
    assert rows[0]['check_none' if nothing is None else f'check_{nothing}'] == 'n/a'


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / 'a.html'
    out.write_text('old')

    def full(*_: object, **__: object) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk full'):
        subject.write_subject_report(out, subject='1', scans=[])
    assert out.read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['a.html']


def test_paragraphs_and_marks_of_the_methods() -> None:
    html = str(subject.markdown_lite('# Head\nOne *two* **three**\nfour `a<b`.\n\nNext 2 * 3 * 4.'))
    assert html == (
        '<h4>Head</h4>\n<p>One <em>two</em> <strong>three</strong> four <code>a&lt;b</code>.</p>\n<p>Next 2 * 3 * 4.</p>'
    )


# The group ---------------------------------------------------------------------------------------------------------


def cohort() -> list[dict[str, Any]]:
    """Two sites whose raw intensities differ by a bend, and not at all after."""
    return [qc(f'{i:02d}', 'siteA' if i < 4 else 'siteB', dark=1.0 if i < 4 else 1.5) for i in range(8)]


def test_wasserstein_distance_of_a_known_shift() -> None:
    table = np.stack([np.linspace(0, 1, 101), np.linspace(0, 1, 101) + 0.25])
    assert group.wasserstein_matrix(table)[0, 1] == pytest.approx(0.25)


def test_before_is_compared_without_each_scanners_gain() -> None:
    one, two = qc(), qc()
    two['quantiles']['before'] = [9 * value for value in two['quantiles']['before']]
    two['measures']['before']['p90'] *= 9
    assert group.wasserstein_matrix(group.quantile_table([one, two], 'before')).max() == pytest.approx(
        0, abs=1e-12
    )


def test_classical_scaling_finds_a_plane_again() -> None:
    points = np.random.default_rng(0).normal(size=(9, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = group.classical_mds(distances)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=2), distances)


def test_separation_of_known_distances() -> None:
    distances = np.array([[0, 1, 4], [1, 0, 6], [4, 6, 0]], float)
    assert group.separation(distances, ['a', 'a', 'b']) == group.Separation(between=5.0, within=1.0)
    assert group.separation(distances, ['a', 'a', 'a']).between is None
    assert group.separation(distances, ['a', 'b', 'c']).within is None


@pytest.mark.parametrize(
    ('before', 'after', 'words'),
    [
        ((0.2, 0.1), (0.125, 0.1), '75 % is gone'),
        ((0.2, 0.1), (0.1, 0.1), 'differ no more than people'),
        ((0.2, 0.1), (0.4, 0.1), 'larger'),
        ((0.1, 0.1), (0.1, 0.1), 'did not differ by more'),
        ((0.2, None), (0.1, None), 'No site has two scans'),
        ((None, 0.1), (None, 0.1), 'one site'),
    ],
)
def test_separation_in_words(before: tuple, after: tuple, words: str) -> None:
    assert words in group.separation_message(group.Separation(*before), group.Separation(*after))


def test_the_group_page_shows_each_contrast(tmp_path: Path) -> None:
    scans = [*cohort(), *(qc(f'{i:02d}', 'siteB', contrast='FLAIR', scan=f'f{i}') for i in range(2))]
    page = Page(
        group.write_group_report(
            tmp_path / 'g.html', scans=scans, failed=[ERROR], title='All sites', provenance={'Version': '1'},
            report_links={'03': 'sub-03.html'},
        )
    )  # fmt: skip
    assert_inert(page)
    assert '10 of 11 scans passed; 1 has no harmonized image.' in page.words
    assert '1 scan has no harmonized image. ' in page.words
    assert 'during processing' not in page.words
    for text in (
        'All sites', 'Intensities by site', 'Distances between scans', 'Scans by likeness', 'Tissue volumes by site',
        'divided by its own 90th percentile, because raw units are arbitrary', 'All scans come from one site',
        'projection needs at least three', 'Provenance', 'The image is empty.',
    ):  # fmt: skip
        assert text in page.words, text
    assert any(a.get('href') == 'sub-03.html' for _, a in page.tags)
    labels = [a['aria-label'] for tag, a in page.tags if tag == 'svg' and a.get('role') == 'img']
    assert len(labels) == 16  # T1w: 2 + 2 + 2 + 3 plots; FLAIR: 2 + 2 + 0 + 3
    assert all(re.search(r'\d', label) for label in labels)


@pytest.mark.parametrize('scans', [[], [qc()], [qc('01', None), qc('02', None)]])
def test_small_groups(tmp_path: Path, scans: list[dict[str, Any]]) -> None:
    assert_inert(Page(group.write_group_report(tmp_path / 'g.html', scans=scans)))


def test_many_scans_make_a_small_heat_map(tmp_path: Path) -> None:
    scans = [qc(f'{i:03d}', f'site{i % 3}', dark=1 + (i % 3) / 5) for i in range(120)]
    page = Page(group.write_group_report(tmp_path / 'g.html', scans=scans))
    assert sum(tag == 'rect' for tag, _ in page.tags) < 60
    one_site = [qc(f'{i:03d}') for i in range(60)]
    page = Page(group.write_group_report(tmp_path / 'g.html', scans=one_site))
    assert sum(tag == 'rect' for tag, _ in page.tags) <= 2 * (group.MATRIX_LIMIT**2 + 11)


def test_scans_are_sorted_by_concern(tmp_path: Path) -> None:
    scans = [
        qc('01', checks=[check(value=0.99)]),
        qc('02', verdict='warn', checks=[check(value=0.89, verdict='warn')]),
        qc('03', verdict='fail', checks=[check(value=0.79, verdict='fail')]),
        qc('04', checks=[check(value=0.91)]),
        qc('05', verdict='warn', checks=[check(value=0.81, verdict='warn'), check('x', 1.0)]),
        qc('06', verdict='fail', checks=[check(value=30, verdict='fail', warn=5, fail=10, direction='max')]),
    ]
    wanted = ['06', '03', '05', '02', '04', '01']
    assert [one['subject'] for one in sorted(scans, key=group.concern)] == wanted
    page = Page(group.write_group_report(tmp_path / 'g.html', scans=scans))
    table = page.words[page.words.index('Scans to look at') : page.words.index('Intensities by site')]
    assert re.findall(r'sub-(\d\d)_ses', table) == wanted


def test_none_of_what_must_not_be_there_is_near_no_limit(tmp_path: Path) -> None:
    none = check('voxels', 0, warn=0, fail=0, direction='max')
    scans = [qc('01', checks=[check(value=0.99), none]), qc('02', checks=[none])]
    text = Page(group.write_group_report(tmp_path / 'g.html', scans=scans)).words
    assert text.count('Nearest to a limit') == 1
    assert 'Nearest to a limit: Label of dice' in text
    one = check('voxels', 3, verdict='fail', warn=0, fail=0, direction='max')
    assert subject.margin(one) < 0


def test_the_dictionary_covers_each_column_and_is_json() -> None:
    scans = [qc('02'), qc('01', session=None, checks=[check('odd name!', 0.5), check('dice', None)])]
    rows, dictionary = group.group_table(copy.deepcopy(scans))
    assert [list(row) for row in rows] == [list(dictionary)] * 2
    assert next(iter(dictionary)) == 'participant_id'
    assert [row['participant_id'] for row in rows] == ['sub-01', 'sub-02']
    assert rows[0]['session_id'] == 'n/a'
    assert rows[0]['check_odd_name'] == 0.5
    assert rows[0]['check_dice'] == 'n/a'
    assert rows[1]['before_volume_gm_ml'] == 650.0
    assert rows[1]['change_p95_abs'] == 0.04
    assert rows[0]['after_cjv'] == 'n/a'
    for name, entry in json.loads(json.dumps(dictionary, allow_nan=False)).items():
        assert re.fullmatch(r'[a-z0-9_]+', name)
        assert entry['Description']
        assert set(entry) <= {'LongName', 'Description', 'Units', 'Levels'}
    assert dictionary['before_volume_gm_ml']['Units'] == 'mL'
    assert set(dictionary['verdict']['Levels']) == {'pass', 'warn', 'fail'}
    assert 'fails below 0.8' in dictionary['check_dice']['Description']


def test_the_table_survives_tabs_and_line_breaks() -> None:
    rows, _ = group.group_table([qc(site='a\tb\nc')])
    assert rows[0]['site'] == 'a b c'


def test_sites_are_in_natural_order(tmp_path: Path) -> None:
    scans = [qc(f'{i:02d}', f'scanner-{i}') for i in (10, 2, 1)]
    page = Page(group.write_group_report(tmp_path / 'g.html', scans=scans))
    assert 'scanner-1 (1) scanner-2 (1) scanner-10 (1)' in page.words


def test_a_check_that_could_not_be_computed_is_the_reason_for_a_look(tmp_path: Path) -> None:
    missing = [check('cnr_kept', None, 'not available'), check('target_distance', None, 'not available')]
    scan = qc('01', verdict='warn', checks=[*missing, check('ssim', 0.91)])
    page = Page(subject.write_subject_report(tmp_path / 'a.html', subject='1', scans=[ScanEntry(scan, {})]))
    assert page.words.count('could not be computed') == 1
    assert 'Label of cnr_kept: n/a, could not be computed.' in page.words
    text = Page(group.write_group_report(tmp_path / 'g.html', scans=[scan])).words
    assert 'Label of cnr_kept: n/a, could not be computed' in text
    assert 'Nearest to a limit' not in text


def test_columns_are_described_by_what_they_hold_not_by_the_first_scan() -> None:
    scans = [qc(checks=[check('cnr_kept', None, 'not available', meaning='Not available: too few voxels.')])]
    _, dictionary = group.group_table(scans)
    description = dictionary['check_cnr_kept']['Description']
    assert 'Not available' not in description
    assert description.startswith(verdict.meaning_of('cnr_kept'))
    assert verdict.meaning_of('no such check') == ''


@pytest.mark.parametrize(('held_out', 'said'), [(True, 'nor has the fit'), (False, 'which flatters it')])
def test_what_the_fit_of_volumes_has_seen_is_said(tmp_path: Path, held_out: bool, said: str) -> None:
    one = group.FeatureComparison(
        'T1w', 'combat', (group.FeatureVariant('neither', 0.1, 0.5, 0.3),), 'x.html', held_out=held_out
    )
    assert said in Page(group.write_group_report(tmp_path / 'g.html', scans=[qc()], features=[one])).words
