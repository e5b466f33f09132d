"""Prompts: which stream a call belongs to, by what it is given.

The tensor that holds the prompt stays the same from one step of a stream to the next,
and is another for every other stream. It is known again by its identity: by the tensor,
or by the memory that it is a view of, its place in it and how often it was written to.
Nothing is read from a device.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from graphcache.analysis.binding import latents_path

_PROMPT = re.compile(
    r"^(encoder_hidden_states|prompt|text_|caption|cap_feats|context|input_ids|"
    r"pooled_|class_labels|y$)(?!.*mask)"
)


class Given(NamedTuple):
    """What a call is given, as far as it tells streams apart.

    Attributes:
        prompt: The tensor that holds the prompt; None if there is none.
        latents: The tensor that is denoised; None if it cannot be told.
        key: Shapes, and the values of everything that is no tensor.
    """

    prompt: Tensor | None
    latents: Tensor | None
    key: object

    @staticmethod
    def of(paths: Sequence[str], tensors: Sequence[Tensor], key: object) -> Given:
        """What a call is given.

        Args:
            paths: Of its tensor arguments.
            tensors: They.
            key: Of the call.
        """
        prompt, latents = _places(tuple(paths))
        return Given(
            None if prompt is None else tensors[prompt],
            None if latents is None else tensors[latents],
            key,
        )


@lru_cache(maxsize=256)
def _places(paths: tuple[str, ...]) -> tuple[int | None, int | None]:
    """Which of the arguments hold the prompt and the latents."""
    prompts = [index for index, path in enumerate(paths) if _PROMPT.match(path)]
    latents = latents_path(paths)
    return (
        prompts[0] if prompts else None,
        None if latents is None else paths.index(latents),
    )


class Mark:
    """A tensor as it was, without keeping it alive.

    Args:
        tensor: The tensor.
    """

    __slots__ = ("_offset", "_shape", "_storage", "_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        # Its number is not given to other memory while this reference lives.
        self._storage = StorageWeakRef(  # type: ignore[no-untyped-call]
            tensor.untyped_storage()
        )
        self._offset, self._shape = tensor.storage_offset(), tensor.shape
        self._version = _version(tensor)

    def is_of(self, tensor: Tensor) -> bool:
        """Whether a tensor is the one that was marked, not written to since."""
        if _version(tensor) != self._version:
            return False
        if self._tensor() is tensor:
            return True
        same: bool = tensor.untyped_storage()._cdata == self._storage.cdata
        return (
            same
            and tensor.storage_offset() == self._offset
            and tensor.shape == self._shape
        )


class Prompt:
    """What a stream was given at its latest call.

    Attributes:
        confirmed: Whether the same was given at two calls. If not, the pipeline may
            make the tensor anew for every call, and nothing is told by it.

    Args:
        given: What the call was given.
    """

    __slots__ = ("_key", "_latents", "_mark", "confirmed")

    def __init__(self, given: Given) -> None:
        self._mark = None if given.prompt is None else Mark(given.prompt)
        self._key = given.key
        self._latents = _reference(given)
        self.confirmed = False

    @property
    def known(self) -> bool:
        """Whether there was a prompt at all."""
        return self._mark is not None

    def is_of(self, given: Given) -> bool:
        """Whether a call is given the same prompt in the same form."""
        if self._mark is None or given.prompt is None:
            same = self._mark is None and given.prompt is None
        else:
            same = self._mark.is_of(given.prompt)
        return same and self._key == given.key

    def is_like(self, given: Given) -> bool:
        """Whether a call is given the same prompt, in whatever form."""
        if self._mark is None or given.prompt is None:
            return False
        return self._mark.is_of(given.prompt)

    def is_another(self, given: Given) -> bool:
        """Whether the prompt is certain to be another than before."""
        if not self.confirmed or self._mark is None or given.prompt is None:
            return False
        return not self._mark.is_of(given.prompt)

    def saw(self, given: Given) -> bool:
        """Whether the call is given the very latents of the latest one."""
        latents = None if self._latents is None else self._latents()
        return latents is not None and latents is given.latents

    def confirm(self, given: Given) -> None:
        """The call was given the same."""
        self.confirmed = True
        self._latents = _reference(given)


def _reference(given: Given) -> weakref.ref[Any] | None:
    return None if given.latents is None else weakref.ref(given.latents)


def _version(tensor: Tensor) -> int:
    """How often it was written to; inference tensors do not tell."""
    return -1 if tensor.is_inference() else tensor._version
