"""Load: from an engine on disk to a module, once everything about it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphcache.engine import files
from graphcache.engine.calls import signature_of
from graphcache.engine.decisions import decision_of
from graphcache.engine.formats import get_format
from graphcache.engine.interfaces import entry_of, interface_of, programs_of, route_of
from graphcache.engine.machine import check_target
from graphcache.engine.manifest import CaptureRecord, Manifest, TensorLeaf, decode
from graphcache.engine.module import EngineModule
from graphcache.engine.outputs import tree_of, write_of
from graphcache.engine.plain import tensor_type
from graphcache.engine.stepping import EngineStepper, Good
from graphcache.engine.tensors import load_others, load_tensors
from graphcache.policy.threshold import Comparison
from graphcache.program import InputKind
from graphcache.runtime.hoisted import HoistedDecision
from graphcache.runtime.loop import Loop
from graphcache.runtime.loops import ReadValue, ReadValues
from graphcache.runtime.segment import Interface, Segment
from graphcache.runtime.thresholds import Thresholds
from graphcache.runtime.weights import Weights

Tensors = Mapping[tuple[InputKind, str], Tensor]


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
    tensors = load_tensors(path, manifest.stored, chosen)
    entries = [entry_of(n, record, chosen) for n, record in manifest.programs.items()]
    runs = form.open(path, entries, manifest.details, chosen, tensors)
    interfaces = {
        name: interface_of(record, chosen) for name, record in manifest.programs.items()
    }
    loops = [
        Good(record.call, _loop(path, record, interfaces, runs, tensors, chosen))
        for record in manifest.captures
    ]
    stepper = EngineStepper(
        signature_of(manifest.module),
        Thresholds(manifest.thresholds),
        loops,
        chosen,
        scheduler,
        timestep_callback,
    )
    stepper.stats.planned_bytes = manifest.captures[-1].planned_bytes
    stepper.stats.regions = dict(manifest.captures[-1].regions)
    return EngineModule(path, manifest, stepper)


def _device(manifest: Manifest, wanted: str | torch.device | None) -> torch.device:
    device = torch.device(manifest.target.device if wanted is None else wanted)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _loop(
    path: Path,
    record: CaptureRecord,
    interfaces: Mapping[str, Interface],
    runs: Mapping[str, Any],
    tensors: Tensors,
    device: torch.device,
) -> Loop:
    leaves = [entry for entry in record.call if isinstance(entry, TensorLeaf)]
    paths = [leaf.path for leaf in leaves]
    constants = {t: v for (k, t), v in tensors.items() if k is InputKind.CONSTANT}
    segments = {
        name: Segment.bind(
            interfaces[name],
            runs[name],
            _weights(interfaces[name], tensors),
            constants,
            paths,
        )
        for name in _programs(record)
    }
    rules = {name: Comparison(given) for name, given in record.inclusive.items()}
    return Loop(
        predicates=record.predicates,
        routes={
            entry.signature: route_of(entry.route, segments) for entry in record.routes
        },
        host=record.host,
        decisions={n: decision_of(r) for n, r in record.decisions.items()},
        hoisted={
            name: HoistedDecision(
                name,
                route_of(hoisted.route, segments),
                decision_of(hoisted.forced),
                rules[name],
                record.scale,
            )
            for name, hoisted in record.hoisted.items()
        },
        forced={n: decision_of(r) for n, r in record.forced.items()},
        rules=rules,
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


def _programs(record: CaptureRecord) -> set[str]:
    """Names of the programs that a loop runs."""
    routes = [entry.route for entry in record.routes]
    routes += [hoisted.route for hoisted in record.hoisted.values()]
    return {name for route in routes for name in programs_of(route)}


def _weights(interface: Interface, tensors: Tensors) -> Weights:
    """The weights, in the order of the inputs, as `Weights` finds a module's."""
    names = [e.target for e in interface.inputs if e.kind is InputKind.WEIGHT]
    held = {target: tensors[InputKind.WEIGHT, target] for target in names}
    return Weights((held,) * len(names), tuple(names))


def _values(path: Path, record: CaptureRecord, device: torch.device) -> ReadValues:
    kept = load_others(path, [entry.key for entry in record.read], device)
    return ReadValues(
        tuple(ReadValue(entry.index, kept[entry.key]) for entry in record.read)
    )
