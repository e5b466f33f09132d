"""Tests of graphcache.runtime."""
