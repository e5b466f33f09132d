"""Tests of graphcache.backends."""
