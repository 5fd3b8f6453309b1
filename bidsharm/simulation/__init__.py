"""Travelling heads: one anatomy, several scanners, and the truth behind every scan."""
