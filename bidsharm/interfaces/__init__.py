"""Thin nipype interfaces: they read files, call one function of another room, and write files."""
