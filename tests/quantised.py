"""A small transformer, quantised in every way that is known."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64
HEADS = 2
Make = Callable[[], nn.Module]


class Attention(nn.Module):
    """Multi-head self-attention."""

    is_cross_attention = False

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """f32[b, n, 64] to f32[b, n, 64]."""
        layers = (self.to_q, self.to_k, self.to_v)
        query, key, value = (
            layer(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in layers
        )
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm, attention, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ff = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        """One block."""
        hidden = hidden + self.attn(self.norm(hidden) + shift)
        return hidden + self.ff(hidden)


class Transformer(nn.Module):
    """Blocks whose linear layers are to be quantised."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False
    ) -> Any:
        """f32[b, n, 64], f32[b] to (f32[b, n, 64],)."""
        time = timestep.to(hidden_states.dtype)[:, None]
        shift = self.time(time)[:, None] / 1000
        for block in self.blocks:
            hidden_states = block(hidden_states, shift)
        return {"sample": hidden_states} if return_dict else (hidden_states,)


def plain(
    dtype: torch.dtype = torch.float32, depth: int = 1, seed: int = 0
) -> Transformer:
    """The transformer as it is, for inference."""
    torch.manual_seed(seed)
    return Transformer(depth).eval().requires_grad_(False).to(dtype)


def is_quantised(module: nn.Module, path: str) -> bool:
    """Which layers are quantised: the linear ones of the blocks."""
    return isinstance(module, nn.Linear) and path.startswith("blocks.")


def inputs(module: Any, seed: int = 1) -> dict[str, Tensor]:
    """Keyword arguments of one call."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 8, WIDTH, generator=generator)
    # An engine has a precision, and no layers.
    dtype = module.time.weight.dtype if hasattr(module, "time") else module.dtype
    return {"hidden_states": hidden.to(dtype), "timestep": torch.full((2,), 999.0)}


def generate(module: Any, steps: int = 3) -> list[Tensor]:
    """The outputs of a short denoising loop."""
    given, outputs = inputs(module), []
    with torch.no_grad():
        for step in range(steps):
            given["timestep"] = torch.full((2,), 999.0 - 300.0 * step)
            (output,) = module(**given)
            outputs.append(output.clone())
            given["hidden_states"] = given["hidden_states"] - 0.1 * output
    return outputs


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether two runs are equal bit for bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


def torchao(config: Callable[[Any], Any], dtype: torch.dtype = torch.float32) -> Make:
    """Quantised by torchao.

    Args:
        config: The configuration, from the module ``torchao.quantization``.
        dtype: The precision of the module before.
    """

    def make() -> nn.Module:
        library = importlib.import_module("torchao.quantization")
        module = plain(dtype)
        library.quantize_(module, config(library), filter_fn=is_quantised)
        return module

    return make


def torchao_int4() -> nn.Module:
    """Quantised by torchao to packed int4, as its kernel for the CPU takes it."""
    library = importlib.import_module(
        "torchao.prototype.quantization.int4.inference_workflow"
    )
    config = library.PrototypeInt4WeightOnlyConfig(group_size=32)
    return torchao(lambda _: config, torch.bfloat16)()


def torchao_float8() -> nn.Module:
    """Float8 weights and activations; torchao's own configuration wants a GPU."""
    tensors = importlib.import_module(
        "torchao.quantization.quantize_.workflows.float8.float8_tensor"
    )
    common = importlib.import_module("torchao.quantization.quantize_.common")
    inference = importlib.import_module("torchao.float8.inference")
    granularity = importlib.import_module("torchao.quantization").PerTensor()
    options = {
        "granularity": granularity,
        "mm_config": inference.Float8MMConfig(use_fast_accum=True),
        "kernel_preference": common.KernelPreference.TORCH,
    }
    module = plain()
    for path, part in module.named_modules():
        if is_quantised(part, path):
            weight = tensors.Float8Tensor.from_hp(
                part.weight.data,
                act_quant_kwargs=tensors.QuantizeTensorToFloat8Kwargs(**options),
                **options,
            )
            part.weight = nn.Parameter(weight, requires_grad=False)
    return module


def gguf(kind: str, seed: int = 0) -> Make:
    """Quantised as diffusers loads GGUF files.

    Args:
        kind: The type of the blocks, such as ``"Q8_0"``.
        seed: Of the weights.
    """

    def make() -> nn.Module:
        library = importlib.import_module("gguf")
        ours = importlib.import_module("diffusers.quantizers.gguf.utils")
        quant_type = getattr(library.GGMLQuantizationType, kind)

        def layer(linear: nn.Linear) -> nn.Module:
            made: nn.Module = ours.GGUFLinear(
                *(linear.in_features, linear.out_features, linear.bias is not None),
                compute_dtype=torch.float32,
            )
            data = library.quants.quantize(linear.weight.numpy(), quant_type)
            weight = torch.from_numpy(data.copy())
            made.weight = ours.GGUFParameter(weight, quant_type=quant_type)
            made.bias = linear.bias
            return made

        return _with_layers(plain(seed=seed), layer)

    return make


def bitsandbytes4(quant_type: str = "nf4", *, nested: bool = True) -> Make:
    """Quantised to four bits by bitsandbytes."""

    def make() -> nn.Module:
        library = importlib.import_module("bitsandbytes")

        def layer(linear: nn.Linear) -> nn.Module:
            made: nn.Module = library.nn.Linear4bit(
                *(linear.in_features, linear.out_features, linear.bias is not None),
                compute_dtype=torch.float32,
                compress_statistics=nested,
                quant_type=quant_type,
            )
            made.load_state_dict(linear.state_dict())
            return made

        return _with_layers(plain(), layer).to("cpu")

    return make


def bitsandbytes8(threshold: float, *, has_fp16_weights: bool = False) -> Make:
    """Quantised to int8 by bitsandbytes."""

    def make() -> nn.Module:
        library = importlib.import_module("bitsandbytes")

        def layer(linear: nn.Linear) -> nn.Module:
            made: nn.Module = library.nn.Linear8bitLt(
                *(linear.in_features, linear.out_features, linear.bias is not None),
                has_fp16_weights=has_fp16_weights,
                threshold=threshold,
            )
            made.load_state_dict(linear.state_dict())
            return made

        return _with_layers(plain(), layer).to("cpu")

    return make


def quanto(kind: str) -> Make:
    """Quantised by quanto.

    Args:
        kind: The type of the weights, such as ``"qint8"``.
    """

    def make() -> nn.Module:
        library = importlib.import_module("optimum.quanto")
        module = plain()
        library.quantize(module, weights=getattr(library, kind), exclude=["time"])
        library.freeze(module)
        return module

    return make


def _with_layers(
    module: nn.Module, layer: Callable[[nn.Linear], nn.Module]
) -> nn.Module:
    for path, part in list(module.named_modules()):
        if is_quantised(part, path):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, layer(part))
    return module.eval().requires_grad_(False)


TORCHAO: dict[str, Make] = {
    "int8-weights": torchao(lambda ao: ao.Int8WeightOnlyConfig(version=2)),
    "int8-dynamic": torchao(lambda ao: ao.Int8DynamicActivationInt8WeightConfig()),
    "intx4-weights": torchao(
        lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    ),
    "float8-weights": torchao(lambda ao: ao.Float8WeightOnlyConfig()),
    "float8-dynamic": torchao_float8,
    "int4-packed": torchao_int4,
}
GGUF: dict[str, Make] = {kind: gguf(kind) for kind in ("Q4_0", "Q8_0", "BF16")}
BITSANDBYTES: dict[str, Make] = {
    "nf4": bitsandbytes4(),
    "fp4": bitsandbytes4("fp4", nested=False),
    "int8": bitsandbytes8(0.0),
    "int8-outliers": bitsandbytes8(6.0),
}
QUANTO: dict[str, Make] = {kind: quanto(kind) for kind in ("qint8", "qint4", "qfloat8")}
