"""observe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from expecttest import assert_expected_inline
from torch import Tensor, fx

from graphcache import PolicyError, VerifyError
from graphcache.analysis.view import Analysis
from graphcache.passes.manager import run_passes
from graphcache.passes.observe import Observe, Tensors
from graphcache.passes.pipeline import clean_pipeline, observe_pipeline
from graphcache.printer import format_program
from graphcache.program import InputKind, Program, Stage
from graphcache.spec import verify
from tests.models import tiny
from tests.programs import source


@dataclass(frozen=True)
class Moved:
    """How far values have moved since the step before.

    Args:
        wanted: Names of nodes.
    """

    wanted: tuple[str, ...]

    def groups(self, analysis: Analysis) -> Mapping[str, tuple[fx.Node, ...]]:
        """Every node on its own."""
        return {name: (analysis.nodes[name],) for name in self.wanted}

    def initial(self, observed: Tensors) -> Tensors:
        """The value."""
        return observed

    def measure(self, observed: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        """The largest difference, and the value."""
        return (observed[0] - buffers[0]).abs().max(), observed


def observed(*names: str) -> Program:
    return run_passes(source(tiny(depth=1)), observe_pipeline(Moved(names)))


def test_what_is_measured_is_handed_over_and_what_it_needs_is_held() -> None:
    module = tiny(depth=0)
    module.gain = 2.0
    program = run_passes(source(module), clean_pipeline())
    assert_expected_inline(
        format_program(program),
        """\
source program {
  input %hidden_states: f32[2, 3, 8]
  input %encoder_hidden_states: f32[2, 4, 8]
  input %timestep: f32[2]
  %mul: f32[2, 3, 8] = mul(%hidden_states, 2.0)
  return %mul
}""",
    )
    result = Observe(Moved(("mul",))).run(program)
    assert result.edits == 1
    verify(result.program)
    assert_expected_inline(
        format_program(result.program),
        """\
lowered program {
  input %hidden_states: f32[2, 3, 8]
  input %encoder_hidden_states: f32[2, 4, 8]
  input %timestep: f32[2]
  input &mul.0: f32[2, 3, 8]
  %mul: f32[2, 3, 8] = mul(%hidden_states, 2.0)
  %sub: f32[2, 3, 8] = sub(%mul, &mul.0)
  %abs_1: f32[2, 3, 8] = abs(%sub)
  %max_1: f32[] = max(%abs_1)
  %clone_default: f32[2, 3, 8] = clone(%mul)
  return %clone_default | &mul.0 = %mul | ^mul = %max_1
}""",
    )


def test_it_is_lowered_and_nothing_of_it_is_decided() -> None:
    program = observed("relu")
    assert program.stage is Stage.LOWERED
    assert program.gates == ()
    assert program.lives == ("relu",)
    assert program.stores == ("relu.0",)
    assert [region.kind for region in program.regions] == ["block", "attention"]


def test_a_value_that_others_may_write_to_is_copied() -> None:
    """The caller may write to its latents, and to what it is given."""
    program = observed("hidden_states", "mul_1")
    stores = program.outputs.stores
    assert "clone" in stores[0].name
    assert "clone" in program.outputs.results[0].name
    assert stores[1].name == "mul_1"


def test_arguments_that_nothing_reads_are_no_inputs() -> None:
    program = observed("relu")
    targets = [entry.target for entry in program.inputs_of(InputKind.ARGUMENT)]
    assert targets == ["hidden_states", "timestep"]


def test_a_second_run_makes_no_edit() -> None:
    program = observed("relu")
    result = Observe(Moved(("relu",))).run(program)
    assert result.edits == 0
    assert result.program is program


def test_values_of_unknown_size_are_refused() -> None:
    program = source(tiny(depth=1))
    node = next(n for n in program.graph.nodes if n.name == "relu")
    node.meta["val"] = 3
    with pytest.raises(PolicyError, match="relu cannot be measured: the size of relu"):
        Observe(Moved(("relu",))).run(program)


def test_a_measurement_without_a_value_is_malformed() -> None:
    program = observed("relu").evolve(lives=("relu", "other"))
    with pytest.raises(VerifyError, match="2 live values, but 1 outputs in their"):
        verify(program)
