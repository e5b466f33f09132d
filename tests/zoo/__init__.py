"""Tiny random transformers of diffusers, called as their pipelines call them.

`MODELS` are those that a hook on attention can be compared on, one way of calling each;
`MORE_MODELS` add residuals injected between blocks, streams that are joined midway and
outputs that end early. `ZOO` has them all by name.
"""

from __future__ import annotations

from tests.zoo.images import IMAGE_MODELS, MORE_IMAGE_MODELS
from tests.zoo.loops import (
    Clock,
    GuidedLoop,
    Inputs,
    Loop,
    denoise,
    denoise_guided,
    denoise_in_turn,
)
from tests.zoo.models import TinyModel, first_inputs, make
from tests.zoo.videos import MORE_VIDEO_MODELS, VIDEO_MODELS

__all__ = [
    "MODELS",
    "MORE_MODELS",
    "ZOO",
    "Clock",
    "GuidedLoop",
    "Inputs",
    "Loop",
    "TinyModel",
    "denoise",
    "denoise_guided",
    "denoise_in_turn",
    "first_inputs",
    "make",
]

MODELS = (*VIDEO_MODELS, *IMAGE_MODELS)
MORE_MODELS = (*MORE_VIDEO_MODELS, *MORE_IMAGE_MODELS)
ZOO = {tiny.name: tiny for tiny in (*MODELS, *MORE_MODELS)}
