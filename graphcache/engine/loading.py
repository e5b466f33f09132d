"""Load: from an engine on disk to a module, once everything about it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphcache.engine import files
from graphcache.engine.calls import signature_of
from graphcache.engine.decisions import decision_of
from graphcache.engine.formats import Format, get_format
from graphcache.engine.interfaces import entry_of, interface_of, route_of
from graphcache.engine.machine import check_target
from graphcache.engine.manifest import (
    CaptureRecord,
    Manifest,
    Plain,
    TensorLeaf,
)
from graphcache.engine.module import EngineModule
from graphcache.engine.outputs import tree_of, write_of
from graphcache.engine.plain import tensor_type, value_of
from graphcache.engine.references import check_references, programs_of_capture
from graphcache.engine.sealing import decode
from graphcache.engine.stepping import EngineStepper, Good
from graphcache.engine.tensors import load_others, load_tensors
from graphcache.policy.decisions import Decision
from graphcache.policy.threshold import Comparison
from graphcache.program import InputKind
from graphcache.runtime.hoisted import HoistedDecision
from graphcache.runtime.loop import Loop
from graphcache.runtime.loops import ReadValue, ReadValues
from graphcache.runtime.segment import Interface, Segment
from graphcache.runtime.thresholds import Thresholds
from graphcache.runtime.weights import Weights

Tensors = Mapping[tuple[InputKind, str], Tensor]
Bind = Callable[[str, Sequence[str]], Segment]


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    scheduler: Any = None,
    timestep_callback: Callable[[], Any] | None = None,
) -> EngineModule:
    """Load an engine as a drop-in for the transformer that it was compiled from.

    Every file is compared with its hash before anything is run.

    Args:
        path: What `export` wrote.
        device: Where to run it; by default the device type that it was exported for.
        scheduler: The pipeline's scheduler, if its timesteps are to drive the policy.
        timestep_callback: Returns the current timestep, as in diffusers' configs.

    Returns:
        A module with the forward, config, dtype and device of the transformer, and the
        controls of a compiled module.

    Raises:
        EngineError: If the engine is damaged, or was built for something else.
        PolicyError: If the scheduler has no timesteps.
    """
    path = Path(path)
    manifest = decode(files.read_manifest(path))
    chosen = _device(manifest, device)
    form = get_format(manifest.backend)
    check_target(manifest.target, chosen, portable=form.portable)
    files.check(path, manifest.files)
    check_references(manifest)
    # Everything is made before anything is opened, so that nothing runs of an engine
    # in which something is wrong.
    tensors = load_tensors(path, manifest.stored, chosen)
    stepper = EngineStepper(
        signature_of(manifest.module),
        Thresholds({name: float(v) for name, v in manifest.thresholds.items()}),
        chosen,
        scheduler,
        timestep_callback,
    )
    drafts = [_draft(path, record, chosen) for record in manifest.captures]
    module = EngineModule(path, manifest, stepper)
    bind = _opened(path, manifest, form, tensors, chosen)
    stepper.loops = tuple(Good(d.record.call, _routed(d, bind)) for d in drafts)
    stepper.stats.planned_bytes = manifest.captures[-1].planned_bytes
    stepper.stats.regions = dict(manifest.captures[-1].regions)
    return module


def _device(manifest: Manifest, wanted: str | torch.device | None) -> torch.device:
    said = manifest.target.device if wanted is None else str(wanted)
    device: torch.device = value_of(Plain("device", said))
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


@dataclass(frozen=True)
class _Draft:
    """A loop that has nothing to run yet.

    Attributes:
        record: What it is made of.
        loop: Without routes.
        early: When decisions that the timestep determines are not asked.
    """

    record: CaptureRecord
    loop: Loop
    early: Mapping[str, Decision]


def _draft(path: Path, record: CaptureRecord, device: torch.device) -> _Draft:
    leaves = [entry for entry in record.call if isinstance(entry, TensorLeaf)]
    loop = Loop(
        predicates=record.predicates,
        routes={},
        host=record.host,
        decisions={n: decision_of(r) for n, r in record.decisions.items()},
        hoisted={},
        forced={n: decision_of(r) for n, r in record.forced.items()},
        rules={name: Comparison(given) for name, given in record.inclusive.items()},
        regions=record.regions,
        enclosing={
            name: tuple(map(frozenset, around))
            for name, around in record.enclosing.items()
        },
        arguments={leaf.path: tensor_type(leaf.type, device) for leaf in leaves},
        device=device,
        scale=record.scale,
        output=tree_of(record.output, device),
        named=tree_of(record.named, device),
        values=_values(path, record, device),
        writes=tuple(map(write_of, record.writes)),
    )
    early = {n: decision_of(hoisted.forced) for n, hoisted in record.hoisted.items()}
    return _Draft(record, loop, early)


def _opened(
    path: Path,
    manifest: Manifest,
    form: Format,
    tensors: Tensors,
    device: torch.device,
) -> Bind:
    """Open the programs; returns what binds one of them to the arguments of a call."""
    programs = manifest.programs
    entries = [entry_of(name, record, device) for name, record in programs.items()]
    interfaces = {name: interface_of(r, device) for name, r in programs.items()}
    constants = {t: v for (k, t), v in tensors.items() if k is InputKind.CONSTANT}
    weights = {name: _weights(given, tensors) for name, given in interfaces.items()}
    runs = form.open(path, entries, manifest.details, device, tensors)

    def bind(name: str, paths: Sequence[str]) -> Segment:
        return Segment.bind(
            interfaces[name], runs[name], weights[name], constants, paths
        )

    return bind


def _routed(draft: _Draft, bind: Bind) -> Loop:
    """A loop with what it runs."""
    record, loop = draft.record, draft.loop
    paths = tuple(loop.arguments)
    segments = {name: bind(name, paths) for name in programs_of_capture(record)}
    routes = {
        entry.signature: route_of(entry.route, segments) for entry in record.routes
    }
    hoisted = {
        name: HoistedDecision(
            name,
            route_of(record.hoisted[name].route, segments),
            forced,
            loop.rules[name],
            record.scale,
        )
        for name, forced in draft.early.items()
    }
    return replace(loop, routes=routes, hoisted=hoisted)


def _weights(interface: Interface, tensors: Tensors) -> Weights:
    """The weights, in the order of the inputs, as `Weights` finds a module's."""
    names = [e.target for e in interface.inputs if e.kind is InputKind.WEIGHT]
    held = {target: tensors[InputKind.WEIGHT, target] for target in names}
    return Weights((held,) * len(names), tuple(names), ())


def _values(path: Path, record: CaptureRecord, device: torch.device) -> ReadValues:
    kept = load_others(path, [entry.key for entry in record.read], device)
    return ReadValues(
        tuple(ReadValue(entry.index, kept[entry.key]) for entry in record.read)
    )
