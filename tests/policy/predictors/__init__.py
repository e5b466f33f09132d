"""Tests of graphcache.policy.predictors."""
