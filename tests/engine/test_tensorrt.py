"""The tensorrt format: what it refuses, and real engines built ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import graphcache
from graphcache import EngineError, pyramid_attention_broadcast
from graphcache.engine import tensorrt as format_module
from graphcache.engine.formats import Job, get_format
from graphcache.engine.tensorrt import TensorRTFormat
from graphcache.tensorrt import packages
from graphcache.tensorrt.interface import Interface, Port
from tests.backends import tensorrt_on_cpu
from tests.backends.test_tensorrt import OnGpu, require_tensorrt, stripped
from tests.models import run_loop, tiny
from tests.programs import lowered

__all__ = ["stripped"]  # A fixture.

PAB = pyramid_attention_broadcast(spatial=2)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
DETAILS: dict[str, Any] = {
    "flavour": "rtx",
    "version": "1.5.0.114",
    "compute_capability": "8.9",
    "programs": {},
}


def job(folder: Path, **options: Any) -> Job:
    """One variant to write."""
    programs = {"compute": lowered(tiny(), (True,), PAB)}
    return Job(programs, folder, {}, CPU, options)


def write(folder: Path, **options: Any) -> Mapping[str, Any]:
    """Write the engine of one variant."""
    return TensorRTFormat().write(job(folder, **options))


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU of some compute capability that is asked for it and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_it_is_found_by_its_name() -> None:
    found = get_format("tensorrt")
    assert isinstance(found, TensorRTFormat)
    assert found.name == "tensorrt"
    assert found.conditions


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"opset": 20}, "no option opset: know precision"),
        ({"weights": "none"}, "option weights cannot be 'none'"),
        ({"precision": "bf16"}, "in torch.float32"),
    ],
)
def test_options_are_checked(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_capability_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"say which one .*compute_capability"):
        write(tmp_path)


def test_a_missing_compiler_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed_flavour", lambda: None)
    with pytest.raises(EngineError, match="pip install torch-tensorrt"):
        write(tmp_path, compute_capability="8.9")


def test_only_rtx_builds_for_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classic = SimpleNamespace(flavour="tensorrt", version="11.0.0.114")
    monkeypatch.setattr(format_module, "load_compiler", lambda error: classic)
    wanted = job(tmp_path, compute_capability="8.9")
    pretend_a_gpu(monkeypatch, (9, 0))
    with pytest.raises(EngineError, match=r"which is 9.0 and not 8.9: export there"):
        TensorRTFormat().write(wanted)


def test_an_engine_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"capability 8.9, and cpu cannot run it"):
        TensorRTFormat().open(tmp_path, [], DETAILS, CPU, {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_engine_needs_a_gpu_that_torch_finds(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="torch finds no GPU here cannot run it"):
        TensorRTFormat().open(tmp_path, [], DETAILS, GPU, {})


def test_an_engine_needs_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch, (12, 0))
    with pytest.raises(EngineError, match=r"capability 8.9, and this one has 12.0"):
        TensorRTFormat().open(tmp_path, [], DETAILS, GPU, {})


def test_an_engine_needs_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch, (8, 9))
    runtime = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.6.1.120")
    monkeypatch.setattr(format_module, "load_runtime", lambda *_: runtime)
    with pytest.raises(EngineError, match=r"tensorrt_rtx 1.5.0.114, and this is 1.6.1"):
        TensorRTFormat().open(tmp_path, [], DETAILS, GPU, {})


def test_values_come_in_and_go_out_in_the_types_of_the_program() -> None:
    spectrum, total = (
        torch.randn(3, 2, dtype=torch.complex64),
        torch.tensor(1 / 3).double(),
    )
    ports = [Port.of("spectrum", spectrum), Port.of("total", total)]
    assert [port.shape for port in ports] == [(3, 2, 2), ()]
    assert {port.dtype for port in ports} == {torch.float32}
    interface = Interface(
        tuple(enumerate(ports)),
        tuple(ports),
        (("engine", 1), ("input", 0), ("engine", 0)),
    )
    values = [spectrum.t().contiguous().t(), total]
    entered = interface.enter(values, CPU)
    assert all(value.is_contiguous() for value in entered)
    number, same, complex_again = interface.leave(values, entered)
    assert same is values[0]
    assert torch.equal(complex_again, spectrum)
    assert number.dtype == torch.float64
    assert float(number) == pytest.approx(1 / 3, rel=1e-7)


@pytest.mark.slow
def test_engines_are_built_ahead_of_time(stripped: Path, tmp_path: Path) -> None:
    """Without a GPU; by default with no weights in them."""
    found = {}
    for weights, capability in (("inputs", "8.9"), ("constants", "12.0")):
        folder = tmp_path / weights
        folder.mkdir()
        options = {"compute_capability": capability, "weights": weights}
        written = tensorrt_on_cpu.call(stripped, "export", str(folder), options)
        details, sizes = written["details"], written["sizes"]
        assert details["flavour"] == "rtx"
        assert details["compute_capability"] == capability
        for name, program in details["programs"].items():
            assert program["bytes"] == sizes[f"{name}.engine"] > 100_000
            found[weights, name] = Interface.from_json(program["interface"])
    for name in ("variant0", "variant1"):
        shared, own = found["inputs", name], found["constants", name]
        assert shared.outputs == own.outputs
        assert len(shared.inputs) > len(own.inputs) + 30
        assert {port.name for _, port in own.inputs} >= {"hidden_states", "timestep"}


@pytest.mark.slow
def test_an_unknown_gpu_lists_the_known_ones(stripped: Path, tmp_path: Path) -> None:
    options = {"compute_capability": "1.0"}
    with pytest.raises(AssertionError, match=r"no compute capability 1.0: .*SM89"):
        tensorrt_on_cpu.call(stripped, "export", str(tmp_path), options)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["inputs", "constants"])
def test_a_loop_from_disk_on_a_gpu(tmp_path: Path, weights: str) -> None:
    require_tensorrt()
    module = tiny(depth=3).cuda()
    compiled = graphcache.compile(module, PAB, backend="eager")
    want = run_loop(OnGpu(compiled, torch.float32), 9)
    options = {"weights": weights}
    path = tmp_path / "engine"
    graphcache.export(compiled, path, backend="tensorrt", options=options)
    got = run_loop(OnGpu(graphcache.load(path), torch.float32), 9)
    for left, right in zip(got, want, strict=True):
        assert torch.dist(left, right) <= 1e-4 * right.norm()
