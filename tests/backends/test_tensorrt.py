"""The tensorrt backend: what it refuses, what it makes of a program, and real builds.

Real builds need torch-tensorrt-rtx and tensorrt-rtx, and no GPU; without them they are
skipped. With ``GRAPHCACHE_TENSORRT=all`` in the environment, every method is prepared
and built for every model and precision, which takes about ten minutes.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import graphcache
from graphcache import BackendError, first_block_cache, pyramid_attention_broadcast
from graphcache.backends.eager import EagerBackend
from graphcache.backends.tensorrt import TensorRTBackend
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import conditional_pipeline
from graphcache.program import Program, Stage, fake_value, placeholders
from graphcache.tensorrt import packages
from graphcache.tensorrt.interface import Interface
from graphcache.tensorrt.options import BuildOptions, parse_options
from graphcache.tensorrt.packages import load_compiler, load_runtime
from graphcache.tensorrt.prepare import Prepared, prepare
from graphcache.tensorrt.support import source_line
from tests.backends import tensorrt_on_cpu
from tests.backends.tensorrt_builds import METHODS, programs
from tests.backends.values import values_of, worst_difference
from tests.models import run_loop, tiny, tiny_inputs
from tests.programs import cached, lowered

aten = torch.ops.aten
PAB = pyramid_attention_broadcast(spatial=2)
CPU = torch.device("cpu")


def compile_tiny(**options: Any) -> None:
    """Compile for the backend."""
    subject = graphcache.compile(tiny(), PAB, backend="tensorrt", options=options)
    with torch.no_grad():
        subject(**tiny_inputs())


def run_prepared(prepared: Prepared, values: list[Tensor]) -> list[Tensor]:
    """What an engine would give, if it did what its graph says."""
    entered = prepared.interface.enter(values, CPU)
    return prepared.interface.leave(values, prepared.module(*entered))


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(BackendError, match="no option speed: know precision, weights"):
        compile_tiny(speed=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "fp64"),
        ("weights", None),
        ("weights", "shared"),
        ("workspace_size", -1),
        ("workspace_size", True),
        ("optimization_level", 6),
        ("tf32", 1),
        ("timing_cache_path", 3),
        ("compute_capability", "sm89"),
    ],
)
def test_wrong_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(BackendError, match=f"option {name} cannot be"):
        parse_options({name: value}, BackendError)


def test_options_are_read() -> None:
    given = {"precision": "bf16", "optimization_level": 5, "compute_capability": "12.0"}
    assert parse_options(given, BackendError) == BuildOptions(
        precision="bf16", optimization_level=5, compute_capability="12.0"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "constants"}, "reads them at every call"),
        ({"compute_capability": "8.9"}, "another GPU than the present one"),
        ({"precision": "fp16"}, r"in torch.float32.*\.to\(torch.float16\)"),
        ({}, r'on cpu: move it there, \.to\("cuda"\)'),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BackendError, match=reason):
        compile_tiny(**options)


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_flavour", lambda: None)
    with pytest.raises(BackendError, match="pip install torch-tensorrt"):
        load_compiler(BackendError)
    monkeypatch.setitem(packages.RUNTIMES, "rtx", "no_such_runtime")
    with pytest.raises(BackendError, match="pip install no-such-runtime"):
        load_runtime("rtx", BackendError)


def test_the_report_says_that_nothing_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "installed_flavour", lambda: None)
    found = graphcache.explain(tiny(), PAB, **tiny_inputs(), backend="tensorrt")
    assert "tensorrt converters: not checked, torch_tensorrt is" in found.notes[-1]
    sizes = [sum(_weights(p)) for p in graphcache.variants(found.program, PAB)]
    for index, size in enumerate(sizes):
        assert f"{size} bytes of weights as shared inputs" in found.notes[index]
    assert sizes[0] > sizes[1] > 0
    assert not graphcache.explain(tiny(), PAB, **tiny_inputs()).notes


def _weights(program: Program) -> list[int]:
    nodes = placeholders(program.graph)
    pairs = zip(program.inputs, nodes, strict=True)
    return [fake_value(n).nbytes for e, n in pairs if e.kind.value == "weight"]


def test_conditions_are_refused() -> None:
    program = run_passes(cached(tiny(), PAB), conditional_pipeline())
    with pytest.raises(BackendError, match="this one is conditional"):
        prepare(program)
    disguised = program.evolve(stage=Stage.LOWERED)
    with pytest.raises(BackendError, match="cond_0: it is a condition"):
        prepare(disguised)


def test_writes_are_refused() -> None:
    program = lowered(tiny(), (True,), PAB).copy()
    value = program.outputs.results[0]
    with program.graph.inserting_after(value):
        written = program.graph.call_function(aten.copy_.default, (value, value))
    written.meta["val"] = value.meta["val"]
    with pytest.raises(BackendError, match="drop without a word"):
        TensorRTBackend().compile(program, {})


EVERYTHING = [
    (model, method, precision)
    for model, method in itertools.product(("cogvideox", "flux", "wan"), METHODS)
    for precision in ("fp32", "fp16", "bf16")
    if (method == "fastercache_guided") <= (model == "cogvideox")
    and (method == "seacache") <= (model == "wan")
]
PREPARED = [
    ("cogvideox", "fastercache_guided", "fp32"),
    ("flux", "taylorseer", "bf16"),
    ("wan", "seacache", "fp32"),
]
BUILT = [
    ("cogvideox", "pab", "bf16"),
    ("cogvideox", "fastercache_guided", "fp16"),
    ("flux", "first_block", "bf16"),
    ("flux", "taylorseer", "fp16"),
    ("wan", "taylorseer", "bf16"),
    ("wan", "seacache", "fp16"),
]
if os.environ.get("GRAPHCACHE_TENSORRT") == "all":
    PREPARED = BUILT = EVERYTHING


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "precision"), PREPARED)
def test_what_is_prepared_is_the_program(
    model: str, method: str, precision: str
) -> None:
    """In types that TensorRT has, and with the numbers of eager."""
    for program in programs(model, method, precision):
        prepared = prepare(program)
        values = values_of(program)
        with torch.no_grad():
            got = run_prepared(prepared, values)
            want = EagerBackend().compile(program, {})(list(values))
        # Half precision rounds away what f32 instead of f64 changes.
        assert worst_difference(got, want) <= (3e-5 if precision == "fp32" else 1e-2)
        entered = prepared.interface.enter(values, CPU)
        missing = {torch.float64, torch.complex64, torch.complex128}
        assert not missing & Types(prepared.module).found(*entered)
        given = prepared.interface.to_json()
        assert Interface.from_json(json.loads(json.dumps(given))) == prepared.interface


class Types(fx.Interpreter):
    """Which dtypes occur."""

    def found(self, *values: Tensor) -> set[torch.dtype]:
        """Run, and say."""
        self.seen: set[torch.dtype] = set()
        with torch.no_grad():
            self.run(*values)
        return self.seen

    def run_node(self, n: fx.Node) -> Any:
        """Note what a node gives."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen.add(value.dtype)
        return value


def test_what_passes_through_does_not_enter_the_engine() -> None:
    program = lowered(tiny(), (False,), PAB)
    twice = program.copy()
    output = twice.outputs.results[0]
    given = next(n for n in placeholders(twice.graph) if "cache" in n.name)
    place = next(n for n in twice.graph.nodes if n.op == "output")
    place.args = ((output, output, given),)
    edited = twice.evolve(results=3, stores=())
    prepared = prepare(edited)
    assert len(prepared.interface.outputs) == 1
    assert [side for side, _ in prepared.interface.sources] == [
        "engine",
        "engine",
        "input",
    ]
    values = values_of(edited)
    got = run_prepared(prepared, values)
    want = EagerBackend().compile(edited, {})(list(values))
    assert worst_difference(got, want) == 0
    assert got[2] is values[placeholders(edited.graph).index(given)]


def test_built_in_weights_are_no_inputs() -> None:
    program = lowered(tiny(), (True,), PAB)
    values = values_of(program)
    frozen = {
        index: values[index]
        for index, entry in enumerate(program.inputs)
        if entry.kind.value == "weight"
    }
    prepared = prepare(program, frozen)
    assert {i for i, _ in prepared.interface.inputs}.isdisjoint(frozen)
    with torch.no_grad():
        got = run_prepared(prepared, values)
    want = EagerBackend().compile(program, {})(list(values))
    assert worst_difference(got, want) <= 1e-6


def test_source_lines_are_the_innermost() -> None:
    node = fx.Graph().placeholder("x")
    assert source_line(node) == ""
    node.meta["stack_trace"] = (
        '  File "/a/model.py", line 3, in forward\n    return self.body(x)\n'
        '  File "/a/body.py", line 12, in forward\n    return x + 1\n'
    )
    assert source_line(node) == "body.py:12"


@pytest.fixture(scope="session")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of torch_tensorrt that imports without a GPU."""
    reason = tensorrt_on_cpu.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("torch_tensorrt")
    tensorrt_on_cpu.copy_package(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "precision"), BUILT)
def test_every_variant_is_built(
    stripped: Path, model: str, method: str, precision: str
) -> None:
    """By the real builder; what is converted is, in PyTorch, the program."""
    options = {"compute_capability": "8.9"}
    built = tensorrt_on_cpu.call(stripped, "build", model, method, precision, options)
    assert len(built) == len(programs(model, method, precision))
    for engine in built:
        assert engine["bytes"] > 100_000
        limit = 3e-5 if precision == "fp32" else 3e-2
        assert engine["difference"] <= limit


@pytest.mark.slow
def test_an_operator_without_a_converter_is_named(stripped: Path) -> None:
    text = tensorrt_on_cpu.call(stripped, "refused")
    assert "no converter for aten._linalg_det.default" in text
    report = tensorrt_on_cpu.call(stripped, "explain")
    place = r"no converter for aten._linalg_det.default in gain (tensorrt_builds.py:"
    assert report.count(place) == 2
    assert "checked with rtx 1." in report


def require_tensorrt() -> None:
    """Skip where nothing can be built for the GPU that is here."""
    try:
        load_compiler(BackendError)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (PAB, torch.float32),
        (PAB, torch.float16),
        # In half precision a score may fall on the other side of the threshold.
        (first_block_cache(0.05), torch.float32),
    ],
    ids=["static", "static_half", "dynamic"],
)
def test_on_a_gpu(config: object, dtype: torch.dtype) -> None:
    require_tensorrt()
    runs, decisions = [], []
    for backend in ("eager", "tensorrt"):
        module = tiny(depth=3).to("cuda", dtype)
        subject = graphcache.compile(module, config, backend=backend, progress=False)
        runs.append(run_loop(OnGpu(subject, dtype), 9))
        decisions.append([record.computed for record in subject.cache_stats.steps])
    assert decisions[0] == decisions[1]
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for got, want in zip(*runs, strict=True):
        assert torch.dist(got, want) <= limit * want.norm()


class OnGpu(torch.nn.Module):
    """Takes inputs from the CPU and gives outputs there.

    Args:
        module: On the GPU.
        dtype: Of its inputs.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, **inputs: Tensor) -> tuple[Tensor]:
        """One call."""
        moved = {name: x.to("cuda", self.dtype) for name, x in inputs.items()}
        (output,) = self.module(**moved)
        return (output.float().cpu(),)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_weight_that_is_written_is_seen_on_a_gpu() -> None:
    require_tensorrt()
    module = tiny().cuda()
    subject = graphcache.compile(module, PAB, backend="tensorrt", progress=False)
    first = run_loop(OnGpu(subject, torch.float32), 3)
    with torch.no_grad():
        module.time.weight.mul_(2.0)
        module.blocks[0].ff.weight.mul_(2.0)
    second = run_loop(OnGpu(subject, torch.float32), 3)
    want = run_loop(
        OnGpu(graphcache.compile(module, PAB, backend="eager"), torch.float32), 3
    )
    assert not torch.equal(first[0], second[0])
    for got, expected in zip(second, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
