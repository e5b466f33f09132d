"""Backends: one a file; `registry.py` maps names to them."""
