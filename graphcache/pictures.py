"""What a pipeline returned, as a file: a picture, or a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphcache.errors import EngineError

IMAGE, CLIP = "images.png", "clips.gif"
_SMALLEST = 96
"""Rows of a picture; smaller ones are drawn larger."""


def save_output(output: Any, folder: Path) -> Path:
    """Write the output of a pipeline into a folder.

    Images become one PNG below each other, clips one GIF, which needs no more than
    Pillow. Latents that are grey values are drawn frame beside frame.

    Args:
        output: With ``images`` or ``frames``, from 0 to 1 with channels last, or
            ``frames`` that are latents.
        folder: Where to write; made if missing.

    Returns:
        The file, replaced if it exists.

    Raises:
        EngineError: If there is nothing that can be drawn.
    """
    found = getattr(output, "frames", None)
    if found is None:
        found = getattr(output, "images", None)
        strips = _pixels(found)[:, None]
        return _save_sheet(strips, folder)
    if isinstance(found, Tensor):
        # From -1 to 1, channels first.
        return _save_sheet(found.float().movedim(2, -1) * 0.5 + 0.5, folder)
    return _save_clip(_pixels(found), folder)


def _pixels(found: Any) -> Tensor:
    if found is None:
        raise EngineError("the pipeline returned neither images nor frames")
    return torch.as_tensor(np.asarray(found)).detach()


def _bytes(frames: Tensor) -> Tensor:
    """u8[clips, frames, height, width, 3]."""
    if frames.ndim != 5 or frames.shape[-1] not in (1, 3):
        raise EngineError(
            f"pictures of shape {tuple(frames.shape)} cannot be drawn: they have one "
            "or three channels, which are last"
        )
    drawn = (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return drawn.expand(*drawn.shape[:-1], 3)


def _image(rows: Tensor, height: int) -> Any:
    """A picture of rows of pixels; `height` is that of one of those in it."""
    from PIL import Image

    image = Image.fromarray(rows.contiguous().numpy())
    scale = -(-_SMALLEST // height)
    size = image.width * scale, image.height * scale
    return image.resize(size, Image.Resampling.NEAREST)


def _save_sheet(frames: Tensor, folder: Path) -> Path:
    """One row per clip, one column per frame."""
    drawn = _bytes(frames)
    clips, count, height, width, _ = drawn.shape
    rows = drawn.permute(0, 2, 1, 3, 4).reshape(clips * height, count * width, 3)
    folder.mkdir(parents=True, exist_ok=True)
    _image(rows, height).save(folder / IMAGE)
    return folder / IMAGE


def _save_clip(frames: Tensor, folder: Path) -> Path:
    """The clips below each other, moving together."""
    from diffusers.utils.export_utils import export_to_gif

    drawn = _bytes(frames)
    clips, count, height, width, _ = drawn.shape
    shown = drawn.transpose(0, 1).reshape(count, clips * height, width, 3)
    folder.mkdir(parents=True, exist_ok=True)
    export_to_gif([_image(rows, height) for rows in shown], str(folder / CLIP))
    return folder / CLIP
