"""The method section of a run, and its references, from what was really done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bidsharm import __version__
from bidsharm.imaging.templates import BUNDLED, parse_space
from bidsharm.settings import Settings

#: Key, authors, year, title, journal, DOI of every work that a run may rest on.
REFERENCES: dict[str, tuple[str, str, str, str, str]] = {
    'nipype': ('Gorgolewski, K. and others', '2011', 'Nipype: a flexible, lightweight and extensible neuroimaging data processing framework in Python', 'Frontiers in Neuroinformatics', '10.3389/fninf.2011.00013'),
    'bids': ('Gorgolewski, K. J. and others', '2016', 'The brain imaging data structure, a format for organizing and describing outputs of neuroimaging experiments', 'Scientific Data', '10.1038/sdata.2016.44'),
    'pybids': ('Yarkoni, T. and others', '2019', 'PyBIDS: Python tools for BIDS datasets', 'Journal of Open Source Software', '10.21105/joss.01294'),
    'n4': ('Tustison, N. J. and others', '2010', 'N4ITK: Improved N3 Bias Correction', 'IEEE Transactions on Medical Imaging', '10.1109/TMI.2010.2046908'),
    'ants': ('Avants, B. B. and others', '2011', 'A reproducible evaluation of ANTs similarity metric performance in brain image registration', 'NeuroImage', '10.1016/j.neuroimage.2010.09.025'),
    'deepbet': ('Fisch, L. and others', '2024', 'deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks', 'Computers in Biology and Medicine', '10.1016/j.compbiomed.2024.108845'),
    'segmentation': ('Ashburner, J. and Friston, K. J.', '2005', 'Unified segmentation', 'NeuroImage', '10.1016/j.neuroimage.2005.02.018'),
    'mni': ('Fonov, V. and others', '2011', 'Unbiased average age-appropriate atlases for pediatric studies', 'NeuroImage', '10.1016/j.neuroimage.2010.07.033'),
    'nilearn': ('Abraham, A. and others', '2014', 'Machine learning for neuroimaging with scikit-learn', 'Frontiers in Neuroinformatics', '10.3389/fninf.2014.00014'),
    'ssim': ('Wang, Z. and others', '2004', 'Image quality assessment: from error visibility to structural similarity', 'IEEE Transactions on Image Processing', '10.1109/TIP.2003.819861'),
    'templateflow': ('Ciric, R. and others', '2022', 'TemplateFlow: FAIR-sharing of multi-scale, multi-species brain models', 'Nature Methods', '10.1038/s41592-022-01681-2'),
}  # fmt: skip


@dataclass(frozen=True)
class Boilerplate:
    """A method section and its references.

    Parameters
    ----------
    text
        Paragraphs of plain text, separated by empty lines.
    keys
        Keys of :data:`REFERENCES` that it rests on.
    method_reference
        The harmonizer's own paper, in words, and its DOI.
    """

    text: str
    keys: tuple[str, ...]
    method_reference: tuple[str, str]

    @property
    def references(self) -> list[str]:
        """The references as sentences."""
        lines = []
        for key in self.keys:
            authors, year, title, journal, doi = REFERENCES[key]
            lines.append(f'{authors} ({year}). {title}. {journal}. doi:{doi}')
        paper, doi = self.method_reference
        if paper:
            lines.append(paper.rstrip('. ') + (f'. doi:{doi}' if doi else '.'))
        return lines

    def to_dict(self, provenance: Mapping[str, str]) -> dict[str, Any]:
        """Return what the QC record of a scan keeps, so that any later report tells how that scan was made.

        Parameters
        ----------
        provenance
            Versions and settings by name.
        """
        return {'text': self.text, 'references': self.references, 'provenance': dict(provenance)}

    def to_markdown(self) -> str:
        """Return text and references as Markdown."""
        items = ''.join(f'- {line}\n' for line in self.references)
        return f'# Methods\n\n{self.text}\n\n# References\n\n{items}'

    def to_bibtex(self) -> str:
        """Return the references as BibTeX."""
        entries = []
        for key in self.keys:
            authors, year, title, journal, doi = REFERENCES[key]
            fields = {'author': authors, 'title': title, 'journal': journal, 'year': year, 'doi': doi}
            body = ',\n'.join(f'  {name} = {{{value}}}' for name, value in fields.items())
            entries.append(f'@article{{{key},\n{body}\n}}\n')
        paper, doi = self.method_reference
        if paper:
            note = f'  note = {{{_escape(paper)}}}' + (f',\n  doi = {{{doi}}}' if doi else '')
            entries.append(f'@misc{{harmonizer,\n{note}\n}}\n')
        return '\n'.join(entries)


def write_boilerplate(
    settings: Settings, *, card: dict[str, object], target: str, ants: str, contrasts: tuple[str, ...]
) -> Boilerplate:
    """Describe a run in the words of a method section.

    Parameters
    ----------
    settings
        Settings of the run.
    card
        Card of the harmonizer.
    target
        Label of the target.
    ants
        Which ANTs ran.
    contrasts
        Contrasts that were processed.
    """
    keys = ['bids', 'pybids', 'nipype', 'n4', 'ants', 'segmentation', 'mni', 'nilearn', 'ssim']
    extraction = _extraction(settings)
    if 'deepbet' in extraction:
        keys.append('deepbet')
    spaces = {parse_space(space).name for space in settings.output_spaces}
    if spaces - {'native', 'T1w', BUNDLED}:
        keys.append('templateflow')
    followers = [name for name in contrasts if name != 'T1w']
    follow = (
        f' {", ".join(followers)} images were registered rigidly to a T1w of their subject, where there was one, '
        'from which they took the brain mask and the tissue prior.'
        if followers
        else ''
    )
    text = (
        f'Scans were harmonized with bidsharm {__version__}, a BIDS App built on Nipype.\n\n'
        f'Preprocessing. {extraction} Intensity non-uniformity was removed with N4 ({ants}) on a 2 mm copy inside '
        f'the brain. The brain was registered to the MNI152 template (ICBM 2009a nonlinear symmetric; '
        f'{"affine" if settings.registration == "affine" else "affine, then SyN"}) with antsRegistration.{follow}{_reuse(settings)}\n\n'
        f'Harmonization. Method: {card.get("title", settings.harmonizer)} ({card.get("paper", "")}), registry name '
        f'"{settings.harmonizer}", fidelity to the paper: {card.get("fidelity", "")}; target: {target}; random seed '
        f'{settings.random_seed}.\n\n'
        'Quality control. CSF, grey and white matter were segmented before and after harmonization by one mixture '
        'model with the same atlas prior. Tissue volumes, their overlap (Dice), the agreement of edges, the structural '
        f'similarity to the input, and the distance to the target intensities were compared with {_limits(settings)}.'
    )
    return Boilerplate(text, tuple(keys), (str(card.get('paper', '')), str(card.get('doi', ''))))


def _reuse(settings: Settings) -> str:
    """Return the sentence about what other pipelines have computed; empty when none is named."""
    if not settings.derivatives:
        return ''
    names = ' or '.join(settings.derivatives)
    return (
        f' Where {names} held a bias-corrected T1w with its brain mask, a brain mask, or transforms to the template, '
        'these replaced the corresponding step; the record of each scan names them.'
    )


def _limits(settings: Settings) -> str:
    changed = ', '.join(sorted(settings.qc_thresholds))
    return f'limits set before the run (changed from the defaults: {changed})' if changed else 'fixed limits'


def _extraction(settings: Settings) -> str:
    """Return the sentence about brain extraction; it may not name what cannot have run."""
    if settings.skull_strip == 'skip':
        return 'Scans were taken as skull-stripped' + (
            ', unless a mask was given.' if settings.derivatives else '.'
        )
    how = {
        'deepbet': 'with deepbet',
        'ants': 'by registering the template to the scan (affine and SyN)',
    }[settings.brain_extraction]
    given = ' or a mask was given' if settings.derivatives else ''
    judged = ' (by deepbet)' if settings.brain_extraction == 'ants' else ''
    already = f' a scan was already skull-stripped{judged}' if settings.skull_strip == 'auto' else ''
    unless = f', unless{already}{given}'.replace('unless or', 'unless') if already or given else ''
    return f'The brain was extracted {how}{unless}.'


def _escape(text: str) -> str:
    """Return text for a BibTeX field; the papers of other people's methods may hold any character."""
    special = {'\\': r'\textbackslash ', '{': r'\{', '}': r'\}', **{c: f'\\{c}' for c in '&%$#_'}}
    return ''.join(special.get(character, character) for character in text)
