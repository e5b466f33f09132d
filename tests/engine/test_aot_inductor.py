"""AOTInductor: real engines, over a loop, and in a process that has no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import graphcache
from graphcache import EngineError, Interval, Policy, first_block_cache
from graphcache.engine import aot_inductor, export, load
from graphcache.engine.aot_inductor import PACKAGE_FILE, AotInductorFormat
from graphcache.engine.formats import WEIGHTS_FILE, Entry
from graphcache.policy import Attention
from graphcache.program import Input, InputKind, TensorType
from tests.engine.engines import compiled, engine_of, steps
from tests.models import run_loop, tiny, tiny_inputs

WIDTH, TOKENS, STEPS = 256, 512, 6
MEGABYTE = 2**20


class Attend(nn.Module):
    """Self-attention wide enough to take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """f32[b, n, 256] to f32[b, n, 256]."""
        heads = (
            layer(hidden).unflatten(-1, (4, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = functional.scaled_dot_product_attention(*heads)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Wide(nn.Module):
    """Some megabytes of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attend() for _ in range(3))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(3)
        )

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True
    ) -> Any:
        """f32[1, 512, 256] to the same, as a tuple."""
        hidden_states = hidden_states + timestep[:, None, None] / 1000
        for attend, layer in zip(self.attentions, self.layers, strict=True):
            hidden_states = hidden_states + attend(hidden_states)
            hidden_states = hidden_states + layer(hidden_states)
        return (hidden_states,)


def close(got: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether every output is as near as another compiler's rounding."""
    pairs = zip(got, wanted, strict=True)
    return all(torch.dist(one, other) <= 1e-4 * other.norm() for one, other in pairs)


def run(module: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """A loop over timesteps; the outputs."""
    outputs = []
    with torch.no_grad():
        for index in range(STEPS):
            inputs["timestep"] = torch.full((1,), 900.0 - 100 * index)
            outputs.append(module(**inputs)[0].clone())
    return outputs


@pytest.fixture(scope="module", name="wide")
def _wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An engine of some megabytes, and the module that it is of."""
    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, TOKENS, WIDTH),
        "timestep": torch.full((1,), 900.0),
    }
    subject = graphcache.compile(
        Wide().eval(),
        Policy("attention", Attention(), Interval(2)),
        backend="eager",
        example_inputs=inputs,
    )
    path = tmp_path_factory.mktemp("wide") / "engine"
    return export(subject, path, progress=False), subject


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["split", "conditional"])
def test_a_dynamic_policy(lowering: str, tmp_path: Path) -> None:
    subject = compiled(first_block_cache(0.2), lowering=lowering)
    engine = engine_of(subject, tmp_path, backend="aot_inductor")
    for threshold in (0.2, 0.0, float("inf")):
        for module in (subject, engine):
            module.cache_thresholds["first_block"] = threshold
        assert close(run_loop(engine, 6), run_loop(subject, 6))
    said = [step.computed for step in steps(engine)]
    assert said == [step.computed for step in steps(subject)]
    assert {step["first_block"] for step in said[:6]} == {True, False}


@pytest.mark.slow
def test_a_static_policy_and_the_size_of_its_engine(wide: tuple[Path, Any]) -> None:
    path, subject = wide
    engine = load(path)
    inputs = {"hidden_states": torch.randn(1, TOKENS, WIDTH)}
    assert close(run(engine, inputs), run(subject, inputs))
    assert steps(engine) == steps(subject)
    weights = sum(weight.nbytes for weight in subject.parameters())
    size = sum(file.stat().st_size for file in path.iterdir())
    assert weights > 8 * MEGABYTE
    assert size <= 1.1 * weights + 2 * 10 * MEGABYTE
    assert (path / WEIGHTS_FILE).stat().st_size <= 1.01 * weights


@pytest.mark.slow
def test_the_weights_are_in_memory_once(wide: tuple[Path, Any]) -> None:
    path, _ = wide
    engine = load(path)
    places: dict[str, set[int]] = {}
    for good in engine._graphcache_runner.loops:
        for segment in good.loop.routes.values():
            weights: Any = segment.weights  # type: ignore[union-attr]
            for name, weight in zip(weights.targets, weights.read(), strict=True):
                places.setdefault(name, set()).add(weight.data_ptr())
    assert all(len(found) == 1 for found in places.values())
    assert len(places) == 36
    # And that in pages of the file.
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in lines
        if line.endswith(str(path / WEIGHTS_FILE))
    ]
    for (place,) in places.values():
        assert any(low <= place < high for low, high in spans)
        assert place % 64 == 0


ELSEWHERE = """
import importlib.abc, json, statistics, sys, time
from pathlib import Path

REFUSED = ("diffusers", "transformers", "accelerate", "tests")

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is not to be needed")
        return None

sys.meta_path.insert(0, Refuse())

import torch
from safetensors.torch import load_file, save_file
from graphcache.engine import load

def read_bytes():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])

def call(engine, index, hidden):
    began = time.perf_counter()
    with torch.no_grad():
        out = engine(hidden, torch.full((1,), 900.0 - 100 * index))[0]
    return time.perf_counter() - began, out.clone()

path, inputs, outputs = sys.argv[1:]
hidden = load_file(inputs)["hidden_states"]
load(path)
firsts, others = [], []
for _ in range(3):
    before = read_bytes()
    engine = load(path)
    read = read_bytes() - before
    made = [call(engine, index, hidden) for index in range(6)]
    # Every second step computes.
    firsts.append(made[0][0])
    others += [taken for taken, _ in made[2::2]]
save_file({str(index): out for index, (_, out) in enumerate(made)}, outputs)
print(json.dumps({
    "read": read,
    # The machine may be busy with something else at any one of them.
    "first": min(firsts),
    "steady": statistics.median(others),
    "computed": [step.computed["attention"] for step in engine.cache_stats.steps],
}))
"""


@pytest.mark.slow
def test_a_process_without_the_model(wide: tuple[Path, Any], tmp_path: Path) -> None:
    path, subject = wide
    inputs = {"hidden_states": torch.randn(1, TOKENS, WIDTH)}
    save_file(inputs, tmp_path / "inputs")
    arguments = (path, tmp_path / "inputs", tmp_path / "outputs")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    outputs = load_file(tmp_path / "outputs")
    subject._reset_stateful_cache()
    wanted = run(subject, inputs)
    assert close([outputs[str(index)] for index in range(STEPS)], wanted)
    assert said["computed"] == [True, False] * 3
    # Once for the hashes; libraries are unpacked from their package as well.
    names = (WEIGHTS_FILE, PACKAGE_FILE, PACKAGE_FILE)
    size = sum((path / name).stat().st_size for name in names)
    assert said["read"] <= 1.1 * size
    assert said["first"] <= 2 * said["steady"]


def test_options_are_inductors(tmp_path: Path) -> None:
    subject = compiled()
    for options in ({"max_autotuna": True}, {"triton.cudagraphs": True}):
        with pytest.raises(EngineError, match=next(iter(options))):
            export(subject, tmp_path / "engine", options=options, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_laid_out_as_the_library_expects() -> None:
    device = torch.device("cpu")
    kinds = (InputKind.WEIGHT, InputKind.ARGUMENT, InputKind.BUFFER, InputKind.LIVE)
    entry = Entry(
        "step",
        tuple(Input(kind.value, kind, kind.value) for kind in kinds),
        (TensorType((2, 3), torch.float32, device),) * 4,
        (),
        ((3, 1), (1, 2), (1, 2), None),
    )
    seen: list[Tensor] = []
    call = aot_inductor._executable(lambda values: seen.extend(values) or [], entry)
    given = [torch.arange(6.0).reshape(2, 3) for _ in kinds]
    given[1] = given[1].t().contiguous().t()
    call(list(given))
    assert [tensor.stride() for tensor in seen] == [(3, 1), (1, 2), (1, 2), (3, 1)]
    assert all(map(torch.equal, seen, given))
    # Only what is laid out otherwise is copied.
    assert [a is b for a, b in zip(seen, given, strict=True)] == [1, 1, 0, 1]


def test_a_package_that_is_none(tmp_path: Path) -> None:
    (tmp_path / PACKAGE_FILE).write_bytes(b"\0" * 100)
    entry = Entry("step", (), (), ())
    with pytest.raises(EngineError, match=r"programs\.pt2 cannot be loaded on cpu"):
        AotInductorFormat().open(tmp_path, [entry], {}, torch.device("cpu"), {})


def test_what_inductor_cannot_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for that")

    subject = graphcache.compile(
        tiny(), first_block_cache(), backend="eager", example_inputs=tiny_inputs()
    )
    monkeypatch.setattr(torch._inductor, "aot_compile", fail)
    with pytest.raises(EngineError, match=r"first_block_head: no kernel for that"):
        export(subject, tmp_path / "engine", progress=False)
    assert list(tmp_path.iterdir()) == []
