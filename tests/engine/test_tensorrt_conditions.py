"""The tensorrt format with conditions: one engine, built through an ONNX model.

Engines are built by the real builder of TensorRT for RTX, which needs no GPU. They
cannot be run here: the numbers are those of the very model that they are built from.
With ``GRAPHCACHE_TENSORRT=all`` in the environment, every method is built for every
model and precision, which takes about four minutes.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import EngineError
from graphcache.backends.eager import EagerBackend
from graphcache.engine.formats import Job
from graphcache.engine.tensorrt import TensorRTFormat
from graphcache.engine.tensorrt_onnx import write_parsable
from graphcache.engine.tensors import store_tensors
from graphcache.passes.conditional import Conditional
from graphcache.passes.manager import run_passes
from graphcache.program import InputKind, Program
from graphcache.tensorrt import packages
from graphcache.tensorrt.interface import Interface
from tests.backends.tensorrt_builds import DTYPES, METHODS, converted_inputs
from tests.backends.test_tensorrt import OnGpu, require_tensorrt
from tests.backends.values import values_of, worst_difference
from tests.models import run_loop, tiny, tiny_inputs
from tests.programs import cached
from tests.zoo import ZOO, make

CPU = torch.device("cpu")
FIRST_BLOCK = graphcache.first_block_cache(0.1)


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


needs_onnx = needs("onnx", "onnxscript")
needs_builder = needs("tensorrt_rtx", "onnx", "onnxscript")
needs_runtime = needs("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Subject:
    """A conditional program and the weights that it reads."""

    program: Program
    held: Mapping[tuple[InputKind, str], Tensor]

    def job(self, folder: Path, **options: Any) -> Job:
        """A job of this one program, for compute capability 8.9."""
        return Job(
            {"step": self.program},
            folder,
            store_tensors(folder, dict(self.held), {}),
            CPU,
            {"compute_capability": "8.9", **options},
        )

    def values(self) -> list[Tensor]:
        """One for each input: the weights, and noise for the others."""
        return [
            self.held.get((entry.kind, entry.target), noise)
            for entry, noise in zip(
                self.program.inputs, values_of(self.program), strict=True
            )
        ]


def subject(module: nn.Module, program: Program) -> Subject:
    """A program of a module."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    held = {}
    for entry in program.inputs:
        if entry.kind is InputKind.WEIGHT:
            held[entry.kind, entry.target] = tensors[entry.target].detach()
        elif entry.kind is InputKind.CONSTANT:
            held[entry.kind, entry.target] = program.constants[entry.target]
    return Subject(program, held)


def zoo(model: str, method: str, precision: str) -> Subject:
    """A method on a model of the zoo, all branches in one program."""
    dtype, config = DTYPES[precision], METHODS[method]()
    module = make(ZOO[model]).to(dtype)
    program = graphcache.trace(module, config, **converted_inputs(ZOO[model], dtype))
    (program,) = graphcache.variants(program, config, "conditional")
    return subject(module, program)


def small(module: nn.Module | None = None) -> Subject:
    """A first-block cache of a tiny module."""
    module = module or tiny()
    program = run_passes(cached(module, FIRST_BLOCK), [Conditional()])
    return subject(module, program)


def write(made: Subject, folder: Path, **options: Any) -> dict[str, Any]:
    """Build the engine; its details."""
    details = TensorRTFormat().write(made.job(folder, **options))
    (record,) = details["programs"].values()
    assert record["bytes"] == (folder / "step.engine").stat().st_size
    assert not list(folder.glob("*.onnx"))
    return dict(record)


BUILT = [
    ("cogvideox", "first_block", "bf16"),
    ("cogvideox", "pab", "fp16"),
    ("flux", "first_block", "fp16"),
    ("wan", "first_block", "bf16"),
]
if os.environ.get("GRAPHCACHE_TENSORRT") == "all":
    methods = ("pab", "first_block", "fastercache", "taylorseer")
    pairs = [*itertools.product(("cogvideox", "flux", "wan"), methods)]
    pairs += [("cogvideox", "fastercache_guided"), ("wan", "seacache")]
    BUILT = [(*pair, precision) for precision in ("fp16", "bf16") for pair in pairs]


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "precision"), BUILT)
def test_engines_have_conditions(
    model: str, method: str, precision: str, tmp_path: Path
) -> None:
    made = zoo(model, method, precision)
    found = write(made, tmp_path)
    assert found["conditions"] >= 1
    assert found["weight_bytes"] == 0
    interface = Interface.from_json(found["interface"])
    inputs = {port.name: port for _, port in interface.inputs}
    outputs = [port.name for port in interface.outputs]
    assert "hidden_states" in inputs
    assert any(name.startswith("weight.") for name in inputs)
    assert any(name.startswith("buffer.") for name in inputs)
    asked = "threshold." if made.program.metrics else "decision."
    assert any(name.startswith(asked) for name in inputs)
    assert outputs[0] == "result.0"
    assert set(outputs) >= {f"store.{name}" for name in made.program.stores[:1]}
    for name, port in inputs.items():
        if name.startswith("decision."):
            assert (port.dtype, port.shape) == (torch.bool, ())
        if name.startswith("threshold."):
            assert (port.dtype, port.outer) == (torch.float32, torch.float64)
    assert inputs["hidden_states"].dtype == DTYPES[precision]


@needs_builder
@pytest.mark.slow
def test_weights_that_are_built_in_are_there_once(tmp_path: Path) -> None:
    module = tiny(depth=3)
    wide = [nn.Linear(8, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 8)]
    module.blocks[1].ff = nn.Sequential(*wide)
    made = small(module)
    sizes, inputs, held = {}, {}, {}
    for weights in ("inputs", "constants"):
        folder = tmp_path / weights
        folder.mkdir()
        found = write(made, folder, weights=weights)
        interface = Interface.from_json(found["interface"])
        sizes[weights], held[weights] = found["bytes"], found["weight_bytes"]
        inputs[weights] = {port.name for _, port in interface.inputs}
    size = sum(tensor.nbytes for tensor in made.held.values())
    assert held == {"inputs": 0, "constants": size}
    assert 0.9 * size < sizes["constants"] - sizes["inputs"] < 1.2 * size
    read = {name for name in inputs["inputs"] if name.startswith("weight.")}
    assert read
    assert inputs["constants"] == inputs["inputs"] - read


@needs_runtime
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "weights"),
    [
        ("cogvideox", "first_block", "inputs"),
        ("cogvideox", "pab", "inputs"),
        ("cogvideox", "fastercache_guided", "inputs"),
        ("flux", "first_block", "constants"),
        ("wan", "first_block", "constants"),
    ],
)
def test_the_model_has_the_numbers_of_eager(
    model: str, method: str, weights: str, tmp_path: Path
) -> None:
    check_numbers(zoo(model, method, "fp32"), weights, tmp_path)


class Doubles(nn.Module):
    """A tiny transformer with a weight that TensorRT has no type for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.blocks = self.body.blocks
        self.scale = nn.Parameter(torch.tensor([1 / 3], dtype=torch.float64))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> tuple[Tensor]:
        """As the body."""
        scaled = (hidden_states * self.scale).to(hidden_states.dtype)
        (output,) = self.body(scaled, encoder_hidden_states, timestep)
        return (output,)


@needs_runtime
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["inputs", "constants"])
def test_doubles_are_narrowed(weights: str, tmp_path: Path) -> None:
    check_numbers(small(Doubles().eval()), weights, tmp_path)
    onnx = importlib.import_module("onnx")
    model = onnx.load(tmp_path / "step.onnx", load_external_data=False)
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.DOUBLE not in kinds


def check_numbers(made: Subject, weights: str, folder: Path) -> None:
    """Run the model of an engine in ONNX Runtime, with every condition either way."""
    runtime = importlib.import_module("onnxruntime")
    path = folder / "step.onnx"
    job = made.job(folder)
    interface = write_parsable("step", made.program, job, weights, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for _, port in interface.inputs]
    assert [value.name for value in session.get_inputs()] == names
    results = []
    for taken in (True, False):
        values = steered(made, computes=taken)
        with torch.no_grad():
            want = EagerBackend().compile(made.program, {})(list(values))
        entered = interface.enter(values, CPU)
        feed = {n: v.numpy() for n, v in zip(names, entered, strict=True)}
        given = session.run([port.name for port in interface.outputs], feed)
        got = interface.leave(values, [torch.from_numpy(value) for value in given])
        assert worst_difference(got, want) <= 2e-5
        results.append(want[0])
    assert not torch.equal(*results)


def steered(made: Subject, *, computes: bool) -> list[Tensor]:
    """Values by which every decision is to compute, or none."""
    values = made.values()
    for index, entry in enumerate(made.program.inputs):
        if entry.kind is InputKind.THRESHOLD:
            values[index] = torch.full_like(values[index], -1.0 if computes else 1e9)
        elif entry.kind is InputKind.DECISION:
            values[index] = torch.full_like(values[index], computes)
    return values


class Gain(nn.Module):
    """Something that ONNX has and TensorRT has not."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[2, 3, 8] to f32[2, 1, 1]."""
        return torch.linalg.det(x @ x.transpose(1, 2))[:, None, None]


class Unparsable(Doubles):
    """A transformer with such a thing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = Gain()

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> tuple[Tensor]:
        """As the body, times something."""
        (output,) = self.body(hidden_states, encoder_hidden_states, timestep)
        return (output * self.gain(hidden_states),)


@needs_builder
@pytest.mark.slow
def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"step: the ONNX parser .* refuses.*Det"):
        write(small(Unparsable().eval()), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


@needs("onnx")
def test_without_onnx_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"conditions needs onnxscript.*\[onnx\]"):
        TensorRTFormat().write(small().job(tmp_path))


@needs_onnx
def test_without_tensorrt_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed_flavour", lambda: None)
    monkeypatch.setattr(packages, "RUNTIMES", {"rtx": "no_such_runtime"})
    with pytest.raises(EngineError, match="pip install tensorrt, or tensorrt-rtx"):
        TensorRTFormat().write(small().job(tmp_path))


@needs_builder
@pytest.mark.slow
def test_an_export_of_a_compiled_module(tmp_path: Path) -> None:
    """The engine is on disk, and its manifest says what it needs."""
    compiled = graphcache.compile(
        tiny(), FIRST_BLOCK, backend="eager", example_inputs=tiny_inputs()
    )
    options = {"compute_capability": "12.0", "optimization_level": 1, "tf32": True}
    options |= {"workspace_size": 1 << 28, "precision": "fp32"}
    path = tmp_path / "engine"
    graphcache.export(
        compiled, path, backend="tensorrt", lowering="conditional", options=options
    )
    suffixes = sorted(file.suffix for file in path.iterdir())
    assert suffixes == [".engine", ".json", ".safetensors"]
    with pytest.raises(EngineError, match=r"capability|cuda|GPU"):
        graphcache.load(path)


@needs_onnx
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["inputs", "constants"])
def test_a_loop_from_disk_on_a_gpu(tmp_path: Path, weights: str) -> None:
    require_tensorrt()
    module = tiny(depth=3).cuda()
    compiled = graphcache.compile(module, FIRST_BLOCK, backend="eager")
    want = run_loop(OnGpu(compiled, torch.float32), 9)
    path = tmp_path / "engine"
    graphcache.export(
        compiled,
        path,
        backend="tensorrt",
        lowering="conditional",
        options={"weights": weights},
    )
    got = run_loop(OnGpu(graphcache.load(path), torch.float32), 9)
    for left, right in zip(got, want, strict=True):
        assert torch.dist(left, right) <= 1e-4 * right.norm()
