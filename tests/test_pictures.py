"""What a pipeline returned, as a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from graphcache import GraphCacheError
from graphcache.pictures import CLIP, IMAGE, save_output


def test_images_are_below_each_other(tmp_path: Path) -> None:
    images = np.stack([np.zeros((128, 96, 3)), np.ones((128, 96, 3))])
    path = save_output(SimpleNamespace(images=images), tmp_path / "out")
    assert path == tmp_path / "out" / IMAGE
    drawn = np.asarray(Image.open(path))
    assert drawn.shape == (256, 96, 3)
    assert drawn[:128].max() == 0
    assert drawn[128:].min() == 255


def test_clips_move_together(tmp_path: Path) -> None:
    # Two clips of three frames: one grows white, one stays black.
    frames = np.zeros((2, 3, 48, 32, 3), np.float32)
    frames[0, 1], frames[0, 2] = 0.5, 1
    path = save_output(SimpleNamespace(frames=frames), tmp_path)
    assert path == tmp_path / CLIP
    with Image.open(path) as drawn:
        assert drawn.n_frames == 3
        # Small pictures are drawn larger: 48 rows are 96.
        assert drawn.size == (64, 2 * 96)
        for index, white in enumerate([False, False, True]):
            drawn.seek(index)
            pixels = np.asarray(drawn.convert("RGB"))
            assert bool(pixels[:96].min() == 255) == white
            assert pixels[96:].max() == 0


def test_grey_latents_are_a_strip(tmp_path: Path) -> None:
    frames = torch.linspace(-1, 1, 4).reshape(1, 4, 1, 1, 1).expand(1, 4, 1, 96, 96)
    path = save_output(SimpleNamespace(frames=frames), tmp_path)
    drawn = np.asarray(Image.open(path))
    assert drawn.shape == (96, 4 * 96, 3)
    assert drawn[0, ::96, 0].tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize(
    "output",
    [
        SimpleNamespace(images=None),
        SimpleNamespace(),
        SimpleNamespace(images=np.zeros((1, 8, 8, 4))),
        SimpleNamespace(frames=np.zeros((1, 2, 8, 8, 2))),
    ],
)
def test_what_cannot_be_drawn_is_refused(output: Any, tmp_path: Path) -> None:
    with pytest.raises(GraphCacheError, match=r"neither images nor|cannot be drawn"):
        save_output(output, tmp_path)
    assert list(tmp_path.iterdir()) == []
