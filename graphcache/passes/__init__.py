"""Passes: one a file, named as the pass; `pipeline.py` is the one page."""
