"""Which arguments are the timestep and the latents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphcache.analysis.binding import changing, latents_path, timestep_path


def tensors(**ranks: int) -> dict[str, Tensor]:
    """Tensors of so many dimensions by name; of -1, a mask."""
    return {
        name.replace("__", "."): torch.ones((2,) * rank)
        if rank >= 0
        else torch.ones(2, dtype=torch.bool)
        for name, rank in ranks.items()
    }


@pytest.mark.parametrize(
    ("given", "timestep"),
    [
        ({"hidden_states": 3, "timestep": 2, "timestep_r": 1}, "timestep"),
        ({"r_timestep": 1, "timestep": 1}, "timestep"),
        ({"x__0": 3, "t": 1, "cap_feats__0": 2}, "t"),
        ({"decoder_input_tokens": 3, "decoder_noise_time": 1}, "decoder_noise_time"),
        ({"bb_ca": 3, "bb_ca_time": 1, "local_latents_time": 1}, "bb_ca_time"),
        ({"vision_tokens__0": 5, "vision_timesteps": 1}, "vision_timesteps"),
        ({"x": 2, "timestep_img": 0, "timestep_text": 0}, "timestep_img"),
        # No number of a step: a table, a mask, and nothing at all.
        ({"x": 2, "time_embedding": 2}, None),
        ({"x": 2, "time_mask": -1}, None),
        ({"x": 2, "micro_conds": 2}, None),
    ],
)
def test_the_timestep(given: dict[str, int], timestep: str | None) -> None:
    assert timestep_path(tensors(**given)) == timestep


def test_the_latents_are_the_first_tensor_or_the_hidden_states() -> None:
    assert latents_path(["encoder_hidden_states", "hidden_states"]) == "hidden_states"
    assert latents_path(["x.0", "x.1", "t"]) == "x.0"
    assert latents_path([]) is None


def test_what_a_step_changes() -> None:
    given = tensors(
        hidden_states=3,
        audio_hidden_states=3,
        encoder_hidden_states=3,
        context_latents=3,
        image_embeds=3,
        timestep=1,
        timestep_r=1,
        guidance=1,
        attention_mask=-1,
    )
    assert changing(given) == {
        *("hidden_states", "audio_hidden_states", "context_latents"),
        *("timestep", "timestep_r"),
    }
    assert changing(tensors(x__0=3, x__1=3, t=1, cap_feats__0=2)) == {"x.0", "x.1", "t"}
