"""Tests of graphcache.policy."""
