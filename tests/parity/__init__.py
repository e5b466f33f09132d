"""Parity with diffusers' own hooks."""
