"""Tests of graphcache.policy.indicators."""
