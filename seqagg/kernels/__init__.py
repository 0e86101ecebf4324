"""Loops over flat values and offsets, each checked against a slow oracle in tests/reference.py."""
