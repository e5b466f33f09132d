"""What is run: a model, its inputs, and the denoising loop around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    PyramidAttentionBroadcastConfig,
)
from safetensors.torch import load_file
from torch import Tensor, nn

ASSETS = Path(__file__).parents[1] / "assets" / "moving-digits"
SKIP_RANGE = 2
WINDOW = (100, 800)
DIGIT = 3

Transformer: TypeAlias = Any
"""A `CogVideoXTransformer3DModel`; diffusers' classes have no types."""


class Step(Protocol):
    """What the loop calls: a transformer, compiled or not."""

    def __call__(
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        return_dict: bool,
    ) -> Any:
        """Predict; a tuple whose first item has the latents' shape."""
        ...


@dataclass(frozen=True)
class Size:
    """A model and its inputs.

    Attributes:
        name: For tables and the command line.
        latents: Shape of the latents: batch, frames, channels, height, width.
        text: Shape of one prompt embedding: tokens, features.
        guidance: Scale of classifier-free guidance, which doubles the batch; 1 is off.
        config: Of a randomly initialised model; None loads the trained one.
    """

    name: str
    latents: tuple[int, ...]
    text: tuple[int, int]
    guidance: float = 1.0
    config: Mapping[str, Any] | None = None


SIZES = {
    "small": Size("moving-digits", (1, 6, 1, 16, 16), (4, 64), guidance=2.5),
    "large": Size(
        "large",
        (1, 3, 16, 32, 32),
        (32, 512),
        config={
            "num_attention_heads": 8,
            "attention_head_dim": 64,
            "num_layers": 8,
            "text_embed_dim": 512,
            "sample_height": 32,
            "sample_width": 32,
            "sample_frames": 9,
            "max_text_seq_length": 32,
        },
    ),
    # The class's defaults are CogVideoX-2b: 30 layers of 30 x 64, 17 776 tokens.
    "2b": Size(
        "cogvideox-2b", (1, 13, 16, 60, 90), (226, 4096), guidance=6.0, config={}
    ),
}


@dataclass
class Clock:
    """Where the loop is: what a pipeline's `current_timestep` is, as a plain int."""

    timestep: int = 0

    def __call__(self) -> int:
        """The current timestep."""
        return self.timestep


@dataclass
class Workload:
    """A size, made: model, inputs and schedule.

    Attributes:
        size: What it was made from.
        transformer: In eval mode, on the device, in the dtype.
        scheduler: A `CogVideoXDDIMScheduler` with its timesteps set.
        latents: Where the loop begins, f[batch, frames, channels, height, width].
        embeddings: Prompt embeddings, unconditional first under guidance.
        timesteps: The schedule on the host.
        clock: What the cache configs' callbacks read.
    """

    size: Size
    transformer: Transformer
    scheduler: Any
    latents: Tensor
    embeddings: Tensor
    timesteps: list[int]
    clock: Clock = field(default_factory=Clock)

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.latents.device

    @property
    def tokens(self) -> int:
        """Sequence length inside the transformer, text included."""
        _, frames, _, height, width = self.latents.shape
        patch: int = self.transformer.config.patch_size
        return frames * (height // patch) * (width // patch) + self.embeddings.shape[1]

    def computes(self) -> list[bool]:
        """Whether PAB computes attention, step by step."""
        low, high = WINDOW
        return [
            index % SKIP_RANGE == 0 or not low < timestep < high
            for index, timestep in enumerate(self.timesteps)
        ]

    def inputs(self, timestep: int) -> dict[str, Any]:
        """Arguments of one transformer call at the loop's first latents."""
        copies = self.embeddings.shape[0] // self.latents.shape[0]
        latents = torch.cat([self.latents] * copies)
        return {
            "hidden_states": latents,
            "encoder_hidden_states": self.embeddings,
            "timestep": torch.tensor(timestep, device=self.device).expand(len(latents)),
            "return_dict": False,
        }


def make_workload(
    size: Size, steps: int, device: torch.device, dtype: torch.dtype
) -> Workload:
    """Load or initialise the model and draw the inputs, always the same."""
    torch.manual_seed(0)
    transformer = _make_transformer(size, device).eval()
    # The base class's: the model's own warns of casts even where nothing is cast.
    nn.Module.to(transformer, device, dtype)
    scheduler: Any = CogVideoXDDIMScheduler.from_pretrained(  # type: ignore[no-untyped-call]
        ASSETS / "scheduler"
    )
    scheduler.set_timesteps(steps, device=device)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(size.latents, generator=generator)
    embeddings = _make_embeddings(size, generator)
    return Workload(
        size=size,
        transformer=transformer.requires_grad_(False),
        scheduler=scheduler,
        latents=latents.to(device, dtype),
        embeddings=embeddings.to(device, dtype),
        timesteps=[int(timestep) for timestep in scheduler.timesteps.tolist()],
    )


def generate(step: Step, work: Workload) -> Tensor:
    """The denoising loop of `CogVideoXPipeline`, with `step` as its transformer.

    Returns:
        The final latents.
    """
    latents = work.latents
    guided = work.size.guidance > 1
    for host_timestep, timestep in zip(
        work.timesteps, work.scheduler.timesteps, strict=True
    ):
        work.clock.timestep = host_timestep
        inputs = torch.cat([latents] * 2) if guided else latents
        inputs = work.scheduler.scale_model_input(inputs, timestep)
        prediction = step(
            hidden_states=inputs,
            encoder_hidden_states=work.embeddings,
            timestep=timestep.expand(inputs.shape[0]),
            return_dict=False,
        )[0].float()
        if guided:
            without, conditioned = prediction.chunk(2)
            prediction = without + work.size.guidance * (conditioned - without)
        latents = work.scheduler.step(prediction, timestep, latents, return_dict=False)[
            0
        ].to(work.embeddings.dtype)
    return latents


def pab_config(work: Workload) -> Any:
    """The cache config that diffusers' hooks and graphcache are both given.

    Its callback returns a plain int. With a pipeline's `current_timestep`, a tensor,
    every hook would break the graph under `torch.compile`.
    """
    return PyramidAttentionBroadcastConfig(  # type: ignore[no-untyped-call]
        spatial_attention_block_skip_range=SKIP_RANGE,
        spatial_attention_timestep_skip_range=WINDOW,
        current_timestep_callback=work.clock,
    )


def _make_transformer(size: Size, device: torch.device) -> Transformer:
    kind: Any = CogVideoXTransformer3DModel
    if size.config is None:
        return kind.from_pretrained(ASSETS / "transformer")
    with device:
        return kind(**size.config)


def _make_embeddings(size: Size, generator: torch.Generator) -> Tensor:
    """One prompt, and under guidance the unconditional one before it."""
    if size.config is None:
        known = load_file(ASSETS / "embeddings.safetensors")["embeddings"]
        return known[[10, DIGIT]]
    count = 2 if size.guidance > 1 else 1
    return torch.randn(count, *size.text, generator=generator)
