"""The onnx format: the numbers of the eager backend, over one weights file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import graphcache
from graphcache import EngineError, pyramid_attention_broadcast
from graphcache.engine.formats import WEIGHTS_FILE, get_format
from graphcache.engine.onnx_names import element_type
from graphcache.passes.conditional import Conditional
from graphcache.passes.manager import run_passes
from graphcache.policy import Blocks, HoldOutput, Interval, Policy
from graphcache.program import Input, InputKind, Outputs, Program, Stage, set_outputs
from graphcache.signature import CallSignature
from tests.engine.onnx_files import Files, assert_agree, write
from tests.models import WIDTH, tiny, tiny_inputs
from tests.programs import cached, lowered, source
from tests.zoo import ZOO, first_inputs, make

for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(package)

PAB = pyramid_attention_broadcast(spatial=2)


def arguments(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call, by path."""
    call = CallSignature(module.forward).bind((), inputs)
    return dict(zip(call.paths, call.tensors, strict=True))


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both variants of a tiny module, in the defaults."""
    module = tiny(depth=2)
    programs = [lowered(module, (computes,), PAB) for computes in (True, False)]
    return write(module, programs, tmp_path_factory.mktemp("onnx"))


def bound(files: Files, inputs: dict[str, Any]) -> list[Any]:
    """Inputs of the first program; its weights are not read."""
    return [inputs.get(given.target) for given in files.programs["p0"].inputs]


def check_zoo(name: str, config: object, lowering: str, folder: Path) -> Files:
    """Compare every variant of a model of the zoo.

    At a small timestep: of a large one, the sine depends on the last bit.
    """
    module, inputs = make(ZOO[name]), first_inputs(ZOO[name], timestep=1.0)
    program = graphcache.trace(module, config, **inputs)
    programs = graphcache.variants(program, config, lowering)
    files = write(module, programs, folder)
    assert_agree(files, arguments(module, inputs))
    return files


METHODS: dict[str, Callable[[], object]] = {
    "pab": lambda: PAB,
    "first-block": graphcache.first_block_cache,
    "taylorseer": lambda: graphcache.taylorseer(dtype=None),
    "fastercache": graphcache.fastercache,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "lowering", "programs"),
    [
        ("pab", "specialize", 2),
        ("first-block", "split", 3),
        ("first-block", "conditional", 1),
        ("taylorseer", "specialize", 2),
        ("fastercache", "conditional", 1),
    ],
)
def test_cogvideox(method: str, lowering: str, programs: int, tmp_path: Path) -> None:
    files = check_zoo("cogvideox", METHODS[method](), lowering, tmp_path)
    assert len(files.programs) == programs


class Special(nn.Module):
    """What the exporter cannot do as it is."""

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """f32[4, 6] and c64[4, 3] to four tensors."""
        frequencies = torch.fft.fftfreq(5, d=0.5)
        left, right = z.unsqueeze(-2).expand(4, 2, 3).split([1, 2], -1)
        moved = torch.cat([right, left], -1) * z[:, None]
        positive = (x > 0).masked_fill(x > 1, False)
        spectrum = torch.fft.ifftn(torch.fft.fftn(x) * 2).real
        return frequencies, moved, positive, x.squeeze(1).squeeze((0, 1)), spectrum


def test_tensors_without_elements(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Twice nothing."""
            return x * 2

    inputs = {"x": torch.empty(0, 3)}
    assert_agree(write(Doubled(), [source(Doubled(), inputs)], tmp_path), inputs)


def test_programs_read_the_weights_that_they_are_given(tmp_path: Path) -> None:
    module, inputs = nn.Linear(3, 3), {"input": torch.randn(2, 3)}
    files = write(module, [source(module, inputs)], tmp_path)
    (before,) = files.runs["p0"](bound(files, inputs))
    assert before.abs().sum() > 0
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    (after,) = files.runs["p0"](bound(files, inputs))
    assert torch.equal(after, torch.zeros(2, 3))


def test_what_has_to_be_written_out(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(4, 6), "z": torch.randn(4, 3, dtype=torch.complex64)}
    program = source(Special(), inputs)
    files = write(Special(), [program], tmp_path)
    assert_agree(files, inputs)


@pytest.mark.slow
def test_names(tmp_path: Path) -> None:
    module, config = tiny(depth=2), graphcache.first_block_cache()
    program = graphcache.trace(module, config, **tiny_inputs())
    programs = graphcache.variants(program, config, "split")
    files = write(module, programs, tmp_path)
    head, compute, reuse = [files.model(name).graph for name in files.programs]

    def names(values: Any) -> list[str]:
        return [value.name for value in values]

    residual, probe = "blocks.1:run.0", "?first_block.0"
    lives = [f"live.{name}" for name in programs[0].lives]
    assert names(head.input) == ["hidden_states", "timestep", f"buffer.{probe}"]
    assert names(head.output) == ["score.first_block", *lives]
    assert set(names(compute.input)) <= set(lives)
    assert names(compute.output) == [
        "result.0",
        *[f"store.{name}" for name in (probe, residual)],
    ]
    assert f"buffer.{residual}" in names(reuse.input)


def test_decisions_and_thresholds_are_inputs(tmp_path: Path) -> None:
    config = graphcache.teacache(0.1)
    program = run_passes(cached(tiny(), config), [Conditional()])
    files = write(tiny(), [program], tmp_path)
    assert_agree(files, tiny_inputs())
    inputs = files.model("p0").graph.input
    types = {value.name: value.type.tensor_type for value in inputs}
    assert types["decision.teacache"].elem_type == element_type(torch.bool)
    assert types["threshold.teacache"].elem_type == element_type(torch.float64)
    assert not types["threshold.teacache"].shape.dim


def test_weights_are_in_the_weights_file_alone(files: Files) -> None:
    weights = (files.folder / WEIGHTS_FILE).read_bytes()
    for name, program in files.programs.items():
        held = {
            tensor.name.removeprefix("weight."): {
                entry.key: entry.value for entry in tensor.external_data
            }
            for tensor in files.model(name).graph.initializer
            if tensor.name.startswith("weight.")
        }
        wanted = {entry.target for entry in program.inputs_of(InputKind.WEIGHT)}
        assert set(held) == wanted
        for path, place in held.items():
            assert place["location"] == WEIGHTS_FILE
            offset, length = int(place["offset"]), int(place["length"])
            data = files.held[InputKind.WEIGHT, path].numpy().tobytes()
            assert weights[offset : offset + length] == data


def test_a_file_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(512, 512)

        def forward(self, hidden_states: Tensor) -> Tensor:
            """f32[n, 512] to f32[n, 512]."""
            return self.layer(hidden_states)

    module, inputs = Wide(), {"hidden_states": torch.randn(2, 512)}
    files = write(module, [source(module, inputs)], tmp_path)
    assert (tmp_path / "p0.onnx").stat().st_size < 4096
    assert (tmp_path / WEIGHTS_FILE).stat().st_size > 512 * 512 * 4
    assert_agree(files, inputs)


def test_conditions_in_conditions(tmp_path: Path) -> None:
    module = tiny(depth=2)
    outer = Policy("outer", Blocks(), Interval(3), HoldOutput())
    program = run_passes(cached(module, [PAB[0], outer]), [Conditional()])
    files = write(module, [program], tmp_path)

    def depth(graph: Any) -> int:
        branches = [a.g for n in graph.node if n.op_type == "If" for a in n.attribute]
        return 1 + max(map(depth, branches)) if branches else 0

    assert depth(files.model("p0").graph) == 2
    for outer_computes in (True, False):
        for inner_computes in (True, False):
            said = {"outer": outer_computes, "spatial": inner_computes}

            def decide(given: Input, value: Tensor, said: Any = said) -> Tensor:
                decision = given.kind is InputKind.DECISION
                return torch.tensor(said[given.target]) if decision else value

            assert_agree(files, tiny_inputs(), decide)


def test_a_score_that_is_no_number_computes(tmp_path: Path) -> None:
    module, config = tiny(), graphcache.first_block_cache()
    program = run_passes(cached(module, config), [Conditional()])
    files = write(module, [program], tmp_path)

    def spoil(given: Input, value: Tensor) -> Tensor:
        if given.kind is InputKind.DECISION:
            return torch.tensor(False)
        measured = given.kind is InputKind.BUFFER and "first_block" in given.target
        return torch.full_like(value, torch.nan) if measured else value

    assert_agree(files, tiny_inputs(), spoil)


def test_outputs_that_are_inputs_constants_or_one_value(tmp_path: Path) -> None:
    module = nn.Identity()
    graph = fx.Graph()
    taken = graph.placeholder("taken")
    ones = graph.call_function(torch.ops.aten.ones.default, ([3],))
    with FakeTensorMode():
        taken.meta["val"] = ones.meta["val"] = torch.empty(3)
    graph.output(())
    set_outputs(graph, Outputs((taken, ones, ones), (), (), ()))
    whole = fx.GraphModule({}, graph)
    inputs = (Input("taken", InputKind.ARGUMENT, "taken"),)
    files = write(module, [Program(Stage.LOWERED, whole, inputs, 3)], tmp_path)
    assert_agree(files, {"taken": torch.randn(3)})


def test_outputs_are_not_overwritten_and_inputs_may_be_strided(files: Files) -> None:
    assert_agree(files, tiny_inputs())
    strided = tiny_inputs()
    strided["hidden_states"] = strided["hidden_states"].mT.contiguous().mT
    assert_agree(files, strided)
    first = files.runs["p0"](bound(files, tiny_inputs()))
    kept = [output.clone() for output in first]
    files.runs["p0"](bound(files, tiny_inputs(seed=2)))
    assert all(map(torch.equal, first, kept))


@pytest.mark.parametrize("change", [Tensor.double, lambda x: x[:, :2]])
def test_an_input_of_another_type_is_refused(
    change: Callable[[Tensor], Tensor], files: Files
) -> None:
    inputs = tiny_inputs()
    inputs["hidden_states"] = change(inputs["hidden_states"])
    with pytest.raises(EngineError, match=r"hidden_states: f32\[2, 3, 8\], and got"):
        files.runs["p0"](bound(files, inputs))


def test_an_op_that_onnx_has_not(tmp_path: Path) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Bessel."""
            return torch.special.bessel_j0(x)

    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), Layer())
    program = source(module, {"input": torch.randn(2, WIDTH)})
    with pytest.raises(EngineError) as caught:
        write(module, [program], tmp_path)
    said = str(caught.value)
    assert said.startswith("p0: ONNX cannot express prims.bessel_j0.default (")
    assert "bessel_j0 of 1, File " in said
    assert "test_onnx.py" in said
    assert 'backend="aot_inductor"' in said


def test_sizes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """The sum of what is positive."""
            return x.masked_select(x > 0).sum()

    module = Chosen()
    program = source(module, {"x": torch.randn(4)})
    with pytest.raises(EngineError, match=r"masked_select, File .* depends on data"):
        write(module, [program], tmp_path)


def test_bfloat16_is_refused_where_there_are_no_kernels(tmp_path: Path) -> None:
    module = nn.Linear(WIDTH, WIDTH).bfloat16()
    inputs = {"input": torch.randn(2, WIDTH).bfloat16()}
    with pytest.raises(EngineError, match="export the module in float16 or float32"):
        write(module, [source(module, inputs)], tmp_path)


@pytest.mark.parametrize("options", [{"opset": 21}, {"opset": 22, "prepack": True}])
def test_options(options: dict[str, Any], tmp_path: Path) -> None:
    module = tiny()
    files = write(module, [lowered(module, (True,), PAB)], tmp_path, **options)
    assert_agree(files, tiny_inputs())
    (version,) = [x.version for x in files.model("p0").opset_import if not x.domain]
    assert version == options["opset"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimise": True}, "has no option optimise: it has opset, prepack"),
        ({"opset": 19}, "opset is 19: the onnx format writes 20 to 22"),
        ({"opset": True}, "opset is True"),
        ({"prepack": 1}, "prepack is 1: say True or False"),
    ],
)
def test_options_that_are_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=said):
        write(nn.Identity(), [], tmp_path, **options)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        EngineError, match=rf"needs {package}, .*pip install 'graphcache\[onnx\]'"
    ):
        write(nn.Identity(), [], tmp_path)


def test_a_runtime_without_the_device_is_named(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: [])
    form, details = get_format("onnx"), {"opset": 20, "prepack": False}
    with pytest.raises(EngineError, match="pip install onnxruntime-gpu"):
        form.open(
            files.folder, files.entries, details, torch.device("cuda"), files.held
        )
