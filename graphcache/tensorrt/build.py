"""Building: from a prepared graph to the bytes of an engine.

torch_tensorrt lowers the graph and converts it operator by operator; the network is
then built by TensorRT itself. Nothing is left to PyTorch: an operator without a
converter is an error.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import fx

from graphcache.errors import BackendError
from graphcache.program import is_getitem, placeholders
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Compiler
from graphcache.tensorrt.prepare import Prepared


def build_engine(
    prepared: Prepared, options: BuildOptions, compiler: Compiler
) -> bytes:
    """Build an engine.

    Args:
        prepared: What to build.
        options: How.
        compiler: The packages.

    Raises:
        BackendError: If an operator has no converter, or TensorRT refuses the network;
            the message says which.
    """
    settings = settings_of(options, compiler)
    lowered = lower_for_tensorrt(prepared, settings, compiler)
    _refuse_unsupported(lowered, settings, compiler)
    try:
        return _serialize(prepared, lowered, settings, options, compiler)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"tensorrt failed: {error}") from error


def _refuse_unsupported(
    lowered: fx.GraphModule, settings: Any, compiler: Compiler
) -> None:
    missing = [str(n.target) for n in unsupported(lowered, settings, compiler)]
    if missing:
        raise BackendError(
            f"tensorrt has no converter for {', '.join(dict.fromkeys(missing))}: "
            'graphcache.explain(..., backend="tensorrt") says where they come from'
        )


def settings_of(options: BuildOptions, compiler: Compiler) -> Any:
    """Settings of torch_tensorrt for some options."""
    wanted: dict[str, Any] = {
        "workspace_size": options.workspace_size,
        "optimization_level": options.optimization_level,
        "disable_tf32": not options.allows_tf32,
        "decompose_attention": options.decompose_attention,
        # Otherwise every mask of attention is taken to be a causal one.
        "attn_bias_is_causal": False,
        "require_full_compilation": True,
        "min_block_size": 1,
        # Always on since 2.13, where these are gone.
        "use_explicit_typing": True,
    }
    if options.timing_cache_path is not None:
        wanted["timing_cache_path"] = options.timing_cache_path
    settings = compiler.part("dynamo._settings").CompilationSettings
    known = {field.name for field in fields(settings)}
    return settings(**{name: v for name, v in wanted.items() if name in known})


def lower_for_tensorrt(
    prepared: Prepared, settings: Any, compiler: Compiler
) -> fx.GraphModule:
    """The graph as torch_tensorrt converts it, decomposed and with constants folded.

    Raises:
        BackendError: If torch_tensorrt fails.
    """
    lowering = compiler.part("dynamo.lowering")
    try:
        with torch.no_grad():
            exported = torch.export.export(prepared.module, prepared.example())
            exported = lowering.pre_export_lowering(exported, settings)
            table = lowering.get_decompositions(False, settings.decompose_attention)
            module = exported.run_decompositions(table).module()
            lowered: fx.GraphModule = lowering.post_lowering(module, settings)
    except Exception as error:
        raise BackendError(f"torch_tensorrt cannot lower the graph: {error}") from error
    return lowered


def unsupported(
    lowered: fx.GraphModule, settings: Any, compiler: Compiler
) -> list[fx.Node]:
    """The nodes that have no converter, or none for their arguments."""
    converters = compiler.part("dynamo.conversion").DYNAMO_CONVERTERS
    converters.set_compilation_settings(settings)
    missing: list[fx.Node] = []
    for node in lowered.graph.nodes:
        if node.op not in ("call_function", "call_method", "call_module"):
            continue
        if is_getitem(node) and node.args[0] in missing:
            continue
        if converters.get(node) is None:
            missing.append(node)
    return missing


def _serialize(
    prepared: Prepared,
    lowered: fx.GraphModule,
    settings: Any,
    options: BuildOptions,
    compiler: Compiler,
) -> bytes:
    # Its base class is a class of torch_tensorrt.
    from graphcache.tensorrt.network import Network

    interface = prepared.interface
    # Lowering may put the inputs into another order.
    ports = {port.name: port for _, port in interface.inputs}
    specs = [
        compiler.torch_tensorrt.Input(
            shape=ports[node.name].shape, dtype=ports[node.name].dtype
        )
        for node in placeholders(lowered.graph)
    ]
    network = Network(lowered, specs, interface, settings, compiler)
    return network.serialize(options)
