"""The weights file: readable by safetensors, and aligned where it is mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphcache import EngineError
from graphcache.engine.aligned import _DTYPES, ALIGNMENT, save_aligned

tensors = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.builds(
        lambda shape, dtype: (torch.randn(shape) * 40).to(dtype),
        st.lists(st.integers(0, 5), max_size=3),
        st.sampled_from(list(_DTYPES)),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tensors)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path_factory.mktemp("aligned") / "file"
    places = save_aligned(path, tensors)
    data = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        for key, tensor in tensors.items():
            found = file.get_tensor(key)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            raw = tensor.contiguous().flatten().view(torch.uint8).tolist()
            assert found.flatten().view(torch.uint8).tolist() == raw
            assert list(data[places[key] :][: len(raw)]) == raw
            assert places[key] % ALIGNMENT == 0
            assert not raw or found.data_ptr() % ALIGNMENT == 0


def test_a_dtype_that_the_format_has_not(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"w is torch\.complex128"):
        save_aligned(tmp_path / "file", {"w": torch.zeros(1, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []
