"""What is built by the real builder: every variant of some methods on tiny models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphcache
from graphcache.backends.eager import EagerBackend
from graphcache.engine.formats import Job
from graphcache.engine.tensorrt import TensorRTFormat
from graphcache.engine.tensors import store_tensors
from graphcache.errors import BackendError
from graphcache.program import InputKind, Program
from graphcache.tensorrt.build import build_engine, lower_for_tensorrt, settings_of
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Compiler, load_compiler
from graphcache.tensorrt.prepare import Prepared, prepare
from tests.backends.values import values_of, worst_difference
from tests.models import tiny, tiny_inputs
from tests.zoo import ZOO, Inputs, TinyModel, first_inputs, make

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
METHODS: dict[str, Callable[[], object]] = {
    "pab": lambda: graphcache.pyramid_attention_broadcast(spatial=2),
    "fastercache": graphcache.fastercache,
    "fastercache_guided": lambda: graphcache.fastercache(
        guidance=graphcache.GuidanceConfig(tensor_format="BFCHW")
    ),
    "first_block": lambda: graphcache.first_block_cache(0.1),
    "taylorseer": graphcache.taylorseer,
    "seacache": graphcache.seacache,
}


def programs(model: str, method: str, precision: str) -> list[Program]:
    """Every variant of a method on a tiny model."""
    dtype, tiny, config = DTYPES[precision], ZOO[model], METHODS[method]()
    inputs = converted_inputs(tiny, dtype)
    program = graphcache.trace(make(tiny).to(dtype), config, **inputs)
    return list(graphcache.variants(program, config))


def converted_inputs(model: TinyModel, dtype: torch.dtype) -> Inputs:
    """Inputs of the first call, in a precision."""

    def converted(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    inputs: Inputs = pytree.tree_map(converted, first_inputs(model))
    return inputs


def build(
    model: str, method: str, precision: str, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Build every variant; what came out.

    How far the graph that is converted is from the program is measured in PyTorch: it
    cannot be run by TensorRT without a GPU.
    """
    compiler, chosen = load_compiler(BackendError), BuildOptions(**options)
    found = []
    for program in programs(model, method, precision):
        started = time.perf_counter()
        prepared = prepare(program)
        engine = build_engine(prepared, chosen, compiler)
        found.append(
            {
                "inputs": len(prepared.interface.inputs),
                "outputs": len(prepared.interface.outputs),
                "bytes": len(engine),
                "seconds": time.perf_counter() - started,
                "difference": _difference(program, prepared, chosen, compiler),
            }
        )
    return found


def _difference(
    program: Program, prepared: Prepared, options: BuildOptions, compiler: Compiler
) -> float:
    """The largest relative difference between what is converted and the program."""
    settings = settings_of(options, compiler)
    lowered = lower_for_tensorrt(prepared, settings, compiler)
    values = values_of(program)
    entered = prepared.interface.enter(values, torch.device("cpu"))
    with torch.no_grad():
        got = prepared.interface.leave(values, lowered(*entered))
        want = EagerBackend().compile(program, {})(values)
    return worst_difference(got, want)


class Gain(nn.Module):
    """Something that TensorRT has no converter for."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[2, 3, 8] to f32[2, 1, 1]."""
        return torch.linalg.det(x @ x.transpose(1, 2))[:, None, None]


class WithoutConverter(nn.Module):
    """A transformer with such a thing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny(depth=1)
        self.gain = Gain()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """f32[2, 3, 8] to the same."""
        (output,) = self.body(hidden_states, hidden_states, timestep)
        return (output * self.gain(output),)


def explain() -> str:
    """What is said of a model of which one operator has no converter."""
    inputs = tiny_inputs()
    del inputs["encoder_hidden_states"]
    config = graphcache.pyramid_attention_broadcast(spatial=2)
    module = WithoutConverter().eval()
    return str(graphcache.explain(module, config, **inputs, backend="tensorrt"))


def refused() -> str:
    """What building it says."""
    inputs = tiny_inputs()
    del inputs["encoder_hidden_states"]
    config = graphcache.pyramid_attention_broadcast(spatial=2)
    program = graphcache.trace(WithoutConverter().eval(), config, **inputs)
    prepared = prepare(graphcache.variants(program, config)[0])
    options = BuildOptions(compute_capability="8.9")
    try:
        build_engine(prepared, options, load_compiler(BackendError))
    except BackendError as error:
        return str(error)
    return "built"


def export(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Write an engine; its details, and how large each file is."""
    place = Path(folder)
    variants = programs("cogvideox", "pab", "fp16")
    module = make(ZOO["cogvideox"]).half()
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = {
        (entry.kind, entry.target)
        for part in variants
        for entry in part.inputs
        if entry.kind is InputKind.WEIGHT
    }
    tensors = {key: weights[key[1]].detach() for key in names}
    job = Job(
        programs={f"variant{i}": part for i, part in enumerate(variants)},
        folder=place,
        stored=store_tensors(place, tensors, {}),
        device=torch.device("cpu"),
        options=options,
    )
    details = dict(TensorRTFormat().write(job))
    sizes = {file.name: file.stat().st_size for file in place.iterdir()}
    return {"details": details, "sizes": sizes}
