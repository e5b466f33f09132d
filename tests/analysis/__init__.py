"""Tests of graphcache.analysis."""
