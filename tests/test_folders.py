"""Folders of pipelines: what the transformer is called with is what is recorded."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphcache import GraphCacheError, folders
from graphcache.demo import DEFAULT_MODEL
from graphcache.folders import Request, Source
from tests import pipelines

SMALL = Request(("a red cat",), height=32, width=32, frames=9, steps=2)
REQUESTS = {
    "auraflow": Request(("a red cat", "a dog"), height=24, width=16, steps=2),
    "classes": Request(("1",), steps=2, guidance=3.0, seed=7),
    "cogvideox": SMALL,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each pipeline, not to be changed."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        name: pipelines.saved(getattr(pipelines, name), root / name)
        for name in REQUESTS
    }


@pytest.fixture
def video(roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder of the video pipeline."""
    return Path(shutil.copytree(roots["cogvideox"], tmp_path / "video"))


def really_called(pipe: Any, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Every call of the transformer in a whole generation."""
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(module.forward).parameters
        calls.append({**dict(zip(names, args, strict=False)), **kwargs})

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    folders.generate(pipe, given)
    handle.remove()
    return calls


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two calls hold the same numbers, in whatever order."""
    ours, theirs = (pytree.tree_flatten(dict(sorted(x.items()))) for x in (left, right))
    return ours[1] == theirs[1] and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(ours[0], theirs[0], strict=True)
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_recorded_is_the_first_call(roots: dict[str, Path], name: str) -> None:
    request = REQUESTS[name]
    module, inputs = Source(roots[name], request).load()
    pipe = folders.load_pipeline(roots[name])
    pipe.set_progress_bar_config(disable=True)
    calls = really_called(pipe, folders.arguments(pipe, request))
    assert len(calls) == request.steps == 2
    assert equal(inputs, calls[0])
    assert not equal(inputs, calls[1])
    # It is ready to be compiled: nothing is left on it.
    assert not module._forward_pre_hooks
    assert not module.training


def test_sizes_and_prompts_are_those_asked_for(roots: dict[str, Path]) -> None:
    _, pictures = Source(roots["auraflow"], REQUESTS["auraflow"]).load()
    # Two prompts, each with and without; the autoencoder halves 24 x 16.
    assert pictures["hidden_states"].shape == (4, 4, 12, 8)
    _, clips = Source(roots["cogvideox"], SMALL).load()
    # 9 frames are 3 for the model, 32 pixels are 4.
    assert clips["hidden_states"].shape == (2, 3, 4, 4, 4)
    assert clips["image_rotary_emb"][0].shape == (3 * 2 * 2, 16)
    _, half = Source(roots["classes"], dtype=torch.bfloat16).load()
    assert half["hidden_states"].dtype is torch.bfloat16


def test_a_folder_with_a_transformer_in_it() -> None:
    _, inputs = Source(DEFAULT_MODEL, batch=4).load()
    assert inputs["hidden_states"].shape[0] == 4
    module, inputs = Source(DEFAULT_MODEL / "transformer").load()
    assert inputs["hidden_states"].shape[0] == 2
    assert not module.training


def test_classes_by_name(roots: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roots["classes"], tmp_path / "classes"))
    index = folder / folders.INDEX
    labels = {"id2label": {"0": "tench", "7": "goldfish, carp"}}
    index.write_text(json.dumps(json.loads(index.read_text()) | labels))
    _, inputs = Source(folder, Request(("carp", "tench"))).load()
    # The two classes, and the class of no class for guidance.
    assert inputs["class_labels"].tolist() == [7, 0, 1000, 1000]
    with pytest.raises(GraphCacheError, match=r"no class 'cat': .*one of carp, gold"):
        Source(folder, Request(("cat",))).load()
    with pytest.raises(GraphCacheError, match="no class 'cat': give a number"):
        Source(roots["classes"], Request(("cat",))).load()


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "scheduler"])
def test_a_missing_component_is_named(video: Path, part: str) -> None:
    shutil.rmtree(video / part)
    with pytest.raises(
        GraphCacheError, match=f"has no {part}/.*save the pipeline whole"
    ):
        Source(video, SMALL).load()


def test_a_component_that_was_not_saved_is_named(video: Path) -> None:
    index = video / folders.INDEX
    data = json.loads(index.read_text()) | {"tokenizer": [None, None]}
    index.write_text(json.dumps(data))
    with pytest.raises(GraphCacheError, match="has no tokenizer, which CogVideoXPipe"):
        Source(video, SMALL).load()


def test_an_optional_part_that_the_prompt_needs_is_named() -> None:
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=pipelines.picture_autoencoder(),
        transformer=None,
        scheduler=diffusers.DDIMScheduler(),
    )
    with pytest.raises(GraphCacheError, match="no tokenizer, and PixArtAlphaPipeline"):
        folders.arguments(pipe, Request(("a cat",)))


def test_the_transformer_is_not_read_for_an_engine(video: Path) -> None:
    shutil.rmtree(video / "transformer")
    pipe = folders.load_pipeline(video, without="transformer")
    assert pipe.transformer is None
    with pytest.raises(GraphCacheError, match="has no transformer/"):
        folders.load_pipeline(video)


def test_broken_folders_are_refused(video: Path, tmp_path: Path) -> None:
    (video / "vae" / "config.json").write_text("{")
    with pytest.raises(GraphCacheError, match="diffusers cannot load"):
        Source(video, SMALL).load()
    (video / folders.INDEX).write_text("{")
    with pytest.raises(GraphCacheError, match="is no JSON"):
        Source(video, SMALL).load()
    with pytest.raises(GraphCacheError, match=r"no model_index\.json"):
        folders.load_pipeline(tmp_path)


def test_weights_are_not_unpickled(video: Path) -> None:
    vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(video / "vae")
    shutil.rmtree(video / "vae")
    vae.save_pretrained(video / "vae", safe_serialization=False)
    with pytest.raises(GraphCacheError, match="diffusers cannot load"):
        Source(video, SMALL).load()


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("classes", Request(height=16), "DiTPipeline takes no height"),
        ("auraflow", Request(frames=9), "AuraFlowPipeline takes no num_frames"),
        ("auraflow", Request(height=17), "AuraFlowPipeline: .*divisible by"),
        ("cogvideox", Request(("a",), height=33), "CogVideoXPipeline: .*divisible by"),
    ],
)
def test_what_a_pipeline_does_not_take(
    roots: dict[str, Path], name: str, request_: Request, message: str
) -> None:
    with pytest.raises(GraphCacheError, match=message):
        Source(roots[name], request_).load()


def test_other_sources_are_refused(roots: dict[str, Path]) -> None:
    with pytest.raises(
        GraphCacheError, match="no module unet: it has transformer, vae"
    ):
        Source(roots["classes"], component="unet").load()
    with pytest.raises(GraphCacheError, match="one prompt for each"):
        Source(roots["classes"], batch=2).load()
    with pytest.raises(GraphCacheError, match="folder that save_pretrained of a whole"):
        Source(roots["cogvideox"] / "transformer", SMALL).load()
    with pytest.raises(GraphCacheError, match="give the folder of its pipeline"):
        Source(roots["classes"] / "transformer").load()


def test_a_pipeline_that_needs_a_picture_is_refused() -> None:
    parts = pipelines.cogvideox().components
    pipe = diffusers.CogVideoXImageToVideoPipeline(**parts)
    with pytest.raises(GraphCacheError, match="needs image, which the command line"):
        folders.arguments(pipe, SMALL)


def test_a_transformer_that_is_not_called_is_an_error() -> None:
    pipe = pipelines.classes()
    pipe.set_progress_bar_config(disable=True)
    given = folders.arguments(pipe, REQUESTS["classes"])
    with pytest.raises(GraphCacheError, match="has not called the Linear"):
        folders.record_call(pipe, nn.Linear(1, 1), given)


def test_a_pipeline_is_made_anew_around_an_engine() -> None:
    pipe = pipelines.cogvideox()
    engine = pipe.transformer
    engineless = diffusers.CogVideoXPipeline(**{**pipe.components, "transformer": None})
    again = folders.with_transformer(engineless, "transformer", engine)
    assert again.transformer is engine
    assert again.components == pipe.components
