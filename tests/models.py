"""Small modules that have what the passes look for, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8
HEADS = 2


class TinyAttention(nn.Module):
    """Multi-head attention; cross-attention when given a context."""

    def __init__(self, cross: bool = False) -> None:
        super().__init__()
        self.is_cross_attention = cross
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """f32[b, n, 8] and f32[b, m, 8] to f32[b, n, 8]."""
        source = hidden if context is None else context
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, x in (
                (self.to_q, hidden),
                (self.to_k, source),
                (self.to_v, source),
            )
        )
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


class SoftmaxAttention(TinyAttention):
    """The same product, written out."""

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """f32[b, n, 8] to f32[b, n, 8]."""
        source = hidden if context is None else context
        scores = torch.bmm(self.to_q(hidden), self.to_k(source).transpose(1, 2))
        return self.to_out(torch.bmm((scores * 0.3).softmax(-1), self.to_v(source)))


class TinyBlock(nn.Module):
    """Norm, attention, feed-forward."""

    def __init__(self, cross: bool, attention: type[TinyAttention]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn1 = attention()
        self.attn2 = attention(cross=True) if cross else None
        self.ff = nn.Linear(WIDTH, WIDTH)
        self.gain = 1.0

    def forward(self, hidden: Tensor, context: Tensor, shift: Tensor) -> Tensor:
        """One block."""
        hidden = hidden + self.attn1(self.norm(hidden) + shift)
        if self.attn2 is not None:
            hidden = hidden + self.attn2(hidden, context)
        return hidden + self.ff(hidden).relu() * self.gain


class TinyTransformer(nn.Module):
    """A stack of blocks with a transformer's signature."""

    def __init__(
        self,
        depth: int = 2,
        cross: bool = False,
        attention: type[TinyAttention] = TinyAttention,
        units: float = 1.0,
    ) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(TinyBlock(cross, attention) for _ in range(depth))
        self.units = units
        self.gain = 1.0

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        return_dict: bool = False,
    ) -> Any:
        """f32[b, n, 8], f32[b, m, 8], f32[b] to (f32[b, n, 8],)."""
        time = timestep.to(hidden_states.dtype)
        if self.units != 1.0:
            time = time * self.units
        shift = self.time(time[:, None])[:, None] / 1000
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, shift)
        output = hidden_states * self.gain
        return {"sample": output} if return_dict else (output,)


def tiny(seed: int = 0, **kwargs: Any) -> TinyTransformer:
    """A seeded `TinyTransformer` in eval mode."""
    torch.manual_seed(seed)
    return TinyTransformer(**kwargs).eval()


def tiny_inputs(
    timestep: float = 500.0, tokens: int = 3, seed: int = 1, batch: int = 2
) -> dict[str, Any]:
    """Keyword arguments of one call."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, tokens, WIDTH, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 4, WIDTH, generator=generator),
        "timestep": torch.full((batch,), float(timestep)),
    }


def timesteps(steps: int) -> list[float]:
    """`steps` timesteps from 999 down to 0."""
    return [999.0 - 999.0 * index / max(1, steps - 1) for index in range(steps)]


def run_loop(
    module: nn.Module, steps: int, *, seed: int = 1, **kwargs: Any
) -> list[Tensor]:
    """A denoising loop on moving inputs; the outputs of every step."""
    inputs = tiny_inputs(seed=seed, **kwargs)
    outputs = []
    with torch.no_grad():
        for timestep in timesteps(steps):
            inputs["timestep"] = torch.full_like(inputs["timestep"], timestep)
            (output,) = module(**inputs)
            outputs.append(output.clone())
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    return outputs


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether two runs are equal bit for bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))
