"""hoist-decision."""

from __future__ import annotations

import pytest

from graphcache import BackendError
from graphcache.lowering import lower
from graphcache.passes.hoist_decision import hoistable, indicator_program
from graphcache.policy import Policy, configuration
from graphcache.policy.teacache import teacache
from graphcache.program import InputKind, Program
from graphcache.rewriting import cached_program
from graphcache.signature import CallSignature
from tests.zoo import ZOO, first_inputs, make

BY_TIME = teacache(0.3, timestep_only=True, last=False)
BY_INPUT = teacache(0.3, last=False)


def flux(policy: Policy) -> Program:
    model = make(ZOO["flux"])
    call = CallSignature(model.forward).bind((), first_inputs(ZOO["flux"]))
    return cached_program(model, call, configuration(policy)).program


def test_a_decision_about_the_timestep_is_the_hosts() -> None:
    program = flux(BY_TIME)
    assert hoistable(program) == ("teacache",)
    lowering = lower(program, [BY_TIME])
    assert lowering.choice.name == "specialize"
    assert lowering.host == ("teacache",)
    assert set(lowering.routes) == {(True,), (False,)}


def test_its_program_holds_no_block() -> None:
    small = indicator_program(flux(BY_TIME), "teacache")
    weights = {entry.target for entry in small.inputs_of(InputKind.WEIGHT)}
    assert weights
    assert not any("blocks" in name for name in weights)
    arguments = [entry.target for entry in small.inputs_of(InputKind.ARGUMENT)]
    assert "hidden_states" not in arguments
    assert small.results == 0


def test_a_decision_about_the_latents_stays_in_the_graph() -> None:
    program = flux(BY_INPUT)
    assert hoistable(program) == ()
    assert lower(program, [BY_INPUT]).choice.name == "split"
    with pytest.raises(BackendError, match=r"decides about teacache.*split"):
        lower(program, [BY_INPUT], "specialize")
