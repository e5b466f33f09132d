"""Programs for tests: captured, cached and lowered."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphcache import never_reuse
from graphcache.capture import capture
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import rewrite_pipeline, specialize_pipeline
from graphcache.policy import configuration
from graphcache.policy.decisions import Signature
from graphcache.program import Program
from graphcache.signature import CallSignature
from tests.models import tiny_inputs


def source(module: nn.Module, inputs: dict[str, Any] | None = None) -> Program:
    """The program as captured."""
    call = CallSignature(module.forward).bind((), inputs or tiny_inputs())
    return capture(module, call).program


def cached(module: nn.Module, config: object = None) -> Program:
    """The program with its gates."""
    policies = configuration(config or never_reuse()).policies
    return run_passes(source(module), rewrite_pipeline(policies))


def lowered(module: nn.Module, signature: Signature, config: object = None) -> Program:
    """One straight-line variant."""
    return run_passes(cached(module, config), specialize_pipeline(signature))


def ops(program: Program) -> list[str]:
    """Names of the ATen ops in the program's own graph, in order."""
    return [
        node.target.__name__.split(".")[0]
        for node in program.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema")
    ]
