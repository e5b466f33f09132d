"""Analyses: what the graph says about itself. Nothing here edits a program."""
