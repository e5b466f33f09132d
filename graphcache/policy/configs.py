"""What `compile` takes as a config, and the same as data: dict, JSON and YAML."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from graphcache.errors import PolicyError
from graphcache.policy import cache_dit
from graphcache.policy.data import fields_of, hints, nearest, read_fields
from graphcache.policy.diffusers import CONFIG_NAMES, Configuration, from_diffusers
from graphcache.policy.fastercache import GuidanceConfig
from graphcache.policy.policy import Policy
from graphcache.policy.presets import GUIDANCE, PRESETS

_METHOD, _DIFFUSERS, _POLICIES = "method", "diffusers", "policies"
_POLICY_FIELDS = tuple(field.name for field in dataclasses.fields(Policy))
_YAML = (".yaml", ".yml")


def configuration(config: object) -> Configuration:
    """Read a `Policy`, a sequence of them, a diffusers cache config, or data.

    A sequence may hold a `GuidanceConfig`, and all the others, as well. Data is what
    `config_from_dict` reads, or the path of a file that `load_config` does.

    Raises:
        PolicyError: If `config` is none of these, or malformed.
    """
    if isinstance(config, (str, os.PathLike)):
        config = load_config(config)
    elif isinstance(config, Mapping):
        config = config_from_dict(config)
    if isinstance(config, Configuration):
        return config
    if isinstance(config, Policy):
        return Configuration((config,))
    if isinstance(config, GuidanceConfig):
        return Configuration((), guidance=config)
    if isinstance(config, (list, tuple)):
        return _merge([configuration(item) for item in config])
    found = from_diffusers(config)
    if found is None:
        raise PolicyError(
            f"{type(config).__name__} is no cache config: give a graphcache.Policy, a "
            "list of them, one of diffusers' configs "
            f"({', '.join(CONFIG_NAMES)}), a dict, or the path of a file"
        )
    return found


def _merge(parts: list[Configuration]) -> Configuration:
    policies = tuple(policy for part in parts for policy in part.policies)
    guidance = [part.guidance for part in parts if part.guidance is not None]
    if not policies and not guidance:
        raise PolicyError("the list of policies is empty")
    if len(guidance) > 1:
        raise PolicyError("guidance is configured more than once")
    names = [policy.name for policy in policies]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PolicyError(f"several policies are named {', '.join(repeated)}")
    callbacks = [part.timestep_callback for part in parts]
    callback = next(filter(None, callbacks), None)
    return Configuration(policies, callback, next(iter(guidance), None))


def load_config(path: str | os.PathLike[str]) -> Any:
    """Read a config from a JSON or YAML file, by the suffix of its name.

    Args:
        path: A ``.json``, ``.yaml`` or ``.yml`` file, of what `config_from_dict` reads.

    Returns:
        What `config_from_dict` makes of it.

    Raises:
        PolicyError: If the file cannot be read, or is no config; the message says
            where in the file the fault is.
    """
    file = Path(path)
    decode = _decoder(file)
    try:
        data = decode(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PolicyError(f"{file} cannot be read: {error}") from error
    try:
        return config_from_dict(data)
    except PolicyError as error:
        raise PolicyError(f"{file}: {error}") from error
    except RecursionError as error:
        raise PolicyError(f"{file}: an alias stands in what it names") from error


def save_config(config: object, path: str | os.PathLike[str]) -> None:
    """Write a config to a JSON or YAML file, by the suffix of its name.

    Args:
        config: As for `graphcache.compile`.
        path: A ``.json``, ``.yaml`` or ``.yml`` file, replaced if it exists.

    Raises:
        PolicyError: If the config holds Python, the suffix is another, or the file
            cannot be written.
    """
    file = Path(path)
    _decoder(file)
    data = config_to_dict(config)
    if file.suffix in _YAML:
        text = yaml.safe_dump(data, sort_keys=False)
    else:
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"{file} cannot be written: {error}") from error


def _decoder(file: Path) -> Callable[[str], Any]:
    if file.suffix in _YAML:
        return _from_yaml
    if file.suffix == ".json":
        return functools.partial(json.loads, object_pairs_hook=_unique)
    raise PolicyError(
        f"{str(file)!r} is no cache config: it would be the name of a .json, .yaml or "
        ".yml file"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values for one name, neither is what was meant."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
    return dict(pairs)


def _from_yaml(text: str) -> Any:
    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            # An alias, maybe of what it stands in.
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            _unique([(key.value, value) for key, value in node.value])
            nodes += [value for _, value in node.value]
    return yaml.safe_load(text)


def config_to_dict(config: object) -> dict[str, Any]:
    """A config as plain data: dicts, lists, text and numbers.

    Args:
        config: As for `graphcache.compile`.

    Returns:
        What `config_from_dict` reads back as an equal config; with every option, at its
        default too, so that it means the same to other versions. A sequence is
        ``{"policies": [...]}``.

    Raises:
        PolicyError: If the config holds Python, such as a decision of yours or a
            callback; the message names it.
    """
    return _written(config, "config")


def _written(config: object, where: str) -> dict[str, Any]:
    if isinstance(config, (str, os.PathLike)):
        config = load_config(config)
    elif isinstance(config, Mapping):
        config = config_from_dict(config)
    if isinstance(config, Policy):
        return fields_of(config, where)
    if isinstance(config, GuidanceConfig):
        return {_METHOD: GUIDANCE, **fields_of(config, where)}
    if isinstance(config, Configuration):
        return _written_configuration(config, where)
    if isinstance(config, (list, tuple)):
        return {
            _POLICIES: [
                _written(item, f"{where}[{index}]") for index, item in enumerate(config)
            ]
        }
    # What is no config at all is refused with what would be one.
    configuration(config)
    _refuse_callbacks(config, where)
    return {_DIFFUSERS: type(config).__name__, **fields_of(config, where)}


def _written_configuration(config: Configuration, where: str) -> dict[str, Any]:
    if config.timestep_callback is not None:
        raise PolicyError(_callback(f"{where}.timestep_callback"))
    guidance = () if config.guidance is None else (config.guidance,)
    return _written((*config.policies, *guidance), where)


def _refuse_callbacks(config: object, where: str) -> None:
    for name in hints(type(config)):
        if callable(getattr(config, name)):
            raise PolicyError(_callback(f"{where}.{name}"))


def _callback(where: str) -> str:
    return (
        f"{where} is Python and cannot be data: leave it out. The timestep comes from "
        "compile(scheduler=pipe.scheduler), numbers from the config's own options."
    )


def config_from_dict(data: Any) -> Any:
    """A config from plain data.

    Args:
        data: One of

            * a preset, ``{"method": "dbcache", "head": 4}``: the name of a function
              of graphcache and its arguments (`GuidanceConfig` is ``guidance``);
            * a policy, ``{"name": ..., "regions": {"kind": "Attention"}, "decision":
              {"kind": "Interval", "every": 2}, "predictor": "HoldOutput"}``;
            * one of diffusers' configs, ``{"diffusers": "FirstBlockCacheConfig",
              "threshold": 0.05}``;
            * cache-dit's options, ``{"Fn_compute_blocks": 8}``, as they are in its
              YAML files;
            * several of them, ``{"policies": [...]}`` or a list.

    Returns:
        A `Policy`, a `GuidanceConfig`, a tuple of configs, or a config of diffusers.

    Raises:
        PolicyError: If a name is unknown (the message has the nearest known one), or a
            value of another type or out of its range (the message has its path).
    """
    return _read(data, "config")


def _read(data: Any, where: str) -> Any:
    if isinstance(data, Sequence) and not isinstance(data, str):
        return tuple(_read(item, f"{where}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, Mapping):
        raise PolicyError(f"{where} must be a dict or a list, not {data!r}")
    if cache_dit.recognises(data):
        return cache_dit.read(data, where)
    if _POLICIES in data:
        return _read_policies(data, where)
    if _METHOD in data:
        return _read_named(data, _METHOD, PRESETS, where)
    if _DIFFUSERS in data:
        diffusers = importlib.import_module("diffusers")
        classes = {name: getattr(diffusers, name) for name in CONFIG_NAMES}
        return _read_named(data, _DIFFUSERS, classes, where)
    if not any(name in data for name in _POLICY_FIELDS):
        raise PolicyError(_no_config(data, where))
    return read_fields(data, Policy, where, "a policy")


def is_data(config: object) -> bool:
    """Whether it is a dict that is a config itself, and none that maps to configs."""
    if not isinstance(config, Mapping):
        return False
    keys = (_METHOD, _DIFFUSERS, _POLICIES, *_POLICY_FIELDS)
    return cache_dit.recognises(config) or any(key in config for key in keys)


def _no_config(data: Mapping[str, Any], where: str) -> str:
    known = (_METHOD, _DIFFUSERS, _POLICIES, *_POLICY_FIELDS)
    guesses = [
        f"{name!r}: {nearest(name, (*known, *cache_dit.NAMES))}"
        for name in data
        if difflib.get_close_matches(str(name), (*known, *cache_dit.NAMES), 1)
    ]
    return " ".join(
        [
            f"{where} is no cache config. Give 'method' (a preset), 'name', 'regions' "
            "and 'decision' (a policy), 'diffusers' (one of its configs), 'policies' "
            "(a list), or options of cache-dit.",
            *guesses,
        ]
    )


def _read_policies(data: Mapping[str, Any], where: str) -> Any:
    for name in data:
        if name != _POLICIES:
            raise PolicyError(f"{where} has 'policies', and {name!r} beside it")
    inner = data[_POLICIES]
    if not isinstance(inner, Sequence) or isinstance(inner, str):
        raise PolicyError(f"{where}.policies must be a list, not {inner!r}")
    return _read(inner, f"{where}.{_POLICIES}")


def _read_named(
    data: Mapping[str, Any], key: str, known: Mapping[str, Any], where: str
) -> Any:
    options = {name: value for name, value in data.items() if name != key}
    name = data[key]
    if not isinstance(name, str) or name not in known:
        raise PolicyError(f"{where}.{key} cannot be {name!r}: {nearest(name, known)}")
    return read_fields(options, known[name], where, name)
