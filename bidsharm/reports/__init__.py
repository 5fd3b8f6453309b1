"""Figures of a scan and the self-contained HTML pages about a subject and about a group."""
