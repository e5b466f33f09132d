"""The error tree: everything this library refuses, it refuses with one of these.

A message says what was wrong, where (a module path, a source line, the graph text
around the fault) and what to try.
"""

from __future__ import annotations


class GraphCacheError(RuntimeError):
    """Base of every error that graphcache raises on purpose."""


class CaptureError(GraphCacheError):
    """The module cannot be captured, or changed in a way that capture cannot follow."""


class PolicyError(GraphCacheError):
    """The policy is malformed, matches nothing, or asks for what cannot be known."""


class VerifyError(GraphCacheError):
    """A program breaks the rules of its stage: the fault of a pass, not of the user."""


class BackendError(GraphCacheError):
    """The backend is unknown, or cannot take the program it was given."""


class EngineError(GraphCacheError):
    """An engine on disk is damaged, or does not fit this machine or this call."""


class CacheIdleWarning(UserWarning):
    """A generation in which a policy could have reused something, and never did."""
