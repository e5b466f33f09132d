"""Backends by name."""

from __future__ import annotations

import pytest

from graphcache import BackendError
from graphcache.backends.registry import backend_names, get_backend


@pytest.mark.parametrize("name", backend_names())
def test_every_name_loads_the_backend_it_names(name: str) -> None:
    assert get_backend(name).name == name


@pytest.mark.parametrize("name", ["turbo", "", None, ["eager"]])
def test_unknown_names_list_the_known_ones(name: object) -> None:
    with pytest.raises(BackendError, match="know reference, eager, inductor"):
        get_backend(name)  # type: ignore[arg-type]
