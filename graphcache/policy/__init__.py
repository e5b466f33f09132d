"""Policies: which regions are cached, when, and what stands in for them."""

from graphcache.policy.decisions import Always, Decision, Interval, Step
from graphcache.policy.diffusers import Configuration, configuration
from graphcache.policy.pab import pyramid_attention_broadcast
from graphcache.policy.policy import Policy, never_reuse
from graphcache.policy.predictors import HoldOutput, Predictor
from graphcache.policy.regions import Attention

__all__ = [
    "Always",
    "Attention",
    "Configuration",
    "Decision",
    "HoldOutput",
    "Interval",
    "Policy",
    "Predictor",
    "Step",
    "configuration",
    "never_reuse",
    "pyramid_attention_broadcast",
]
