"""Tests of graphcache.passes."""
