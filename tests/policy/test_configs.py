"""Configs as data: what is written is read back equal, and faults are named."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import graphcache as gc
from graphcache import PolicyError
from graphcache import policy as parts
from graphcache.policy import (
    Policy,
    Scalar,
    Static,
    Step,
    config_from_dict,
    config_to_dict,
    configuration,
    load_config,
    save_config,
)
from graphcache.policy.fastercache import Inside, high_weight, low_weight
from graphcache.policy.presets import PRESETS
from graphcache.policy.scalars import SIGMA, STEP
from graphcache.policy.tgate import BeforeGate
from tests.models import run_loop, same, tiny

SCHEDULE = gc.SmoothCacheSchedule({"attn1": (1, 0, 1), "ff": (1, 1, 0)}, "M", {"ff": 2})

# Hand-made policies: regions x decision x predictor.
counts = st.integers(1, 9)
windows = st.none() | st.tuples(st.integers(-9, 400), st.floats(401, math.inf))
masks = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)
paths = st.lists(st.sampled_from(["", "attn", r"blocks\.\d+", "ff$"]), min_size=1).map(
    tuple
)
flows = st.sets(st.sampled_from(["self", "joint", "cross"]), min_size=1).map(tuple)
own = st.one_of(
    st.builds(parts.Attention, flows, paths, paths),
    st.builds(parts.FeedForward, paths),
    st.builds(parts.EachBlock, paths, paths),
)
regions = st.one_of(
    own,
    st.lists(own, min_size=1, max_size=3).map(tuple).map(parts.AnyOf),
    st.builds(parts.Blocks, counts, st.integers(0, 3)),
    st.builds(parts.Modules, paths),
    st.just(parts.Model()),
    st.just(parts.LastOutput()),
)
static = st.one_of(
    st.just(parts.Always()),
    st.just(parts.Never()),
    st.builds(parts.Warmed, counts, st.integers(0, 3), st.none() | st.integers(3, 9)),
    st.builds(parts.Mask, masks, wraps=st.booleans()),
    st.builds(parts.Ends, counts, counts, st.none() | counts, st.booleans()),
    st.builds(parts.Interval, counts, windows),
    st.builds(BeforeGate, st.integers(5, 9), counts, st.integers(0, 5)),
)
probes = st.one_of(
    st.builds(parts.HeadStream, counts),
    st.sampled_from(
        [parts.ModulatedInput(), parts.TimestepEmbedding(), parts.Latents()]
    ),
)
numbers = st.floats(0, math.inf)
finite = st.floats(-9, 9)
indicators = st.one_of(
    st.builds(
        parts.RelativeChange,
        probes,
        st.booleans(),
        st.none() | counts,
        st.none() | counts,
        st.none() | numbers,
    ),
    st.builds(
        parts.AccumulatedChange,
        probes,
        st.lists(finite, min_size=1).map(tuple),
        st.booleans(),
    ),
    st.builds(parts.SpectralChange, probes, st.floats(0.1, 9), st.none() | counts),
)
decisions = static | st.builds(parts.Threshold, indicators, numbers, static)
scalars = st.one_of(
    st.sampled_from([STEP, SIGMA, low_weight(), high_weight(2)]),
    st.builds(Inside, numbers, st.just((1, 5))).map(lambda of: Scalar("mine", of)),
)
dtypes = st.sampled_from([None, torch.bfloat16, torch.float64])
predictors = st.one_of(
    st.sampled_from([parts.HoldOutput(), parts.HoldResidual(), parts.Zeros()]),
    st.builds(parts.LinearExtrapolation, finite | scalars),
    st.just(parts.LinearResidual()),
    st.builds(parts.Taylor, st.integers(0, 3), dtypes),
    st.builds(parts.TaylorResidual, st.integers(0, 3), dtypes),
    st.builds(parts.SpectralGuidance, st.just("BCHW"), scalars, scalars),
)
policies = st.builds(
    Policy,
    st.from_regex(r"[a-z]{1,6}", fullmatch=True),
    regions,
    decisions,
    predictors,
    st.booleans(),
)
guidance = st.builds(
    gc.GuidanceConfig,
    counts,
    st.tuples(st.integers(-9, 9), st.integers(10, 999)),
    st.sampled_from(["BCFHW", "BFCHW"]),
    scalars,
    scalars,
)
configs = policies | guidance
nested = st.recursive(
    configs, lambda one: st.lists(one, max_size=3).map(tuple), max_leaves=5
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(nested)
def test_what_is_written_is_read_back(config: Any) -> None:
    data = config_to_dict(config)
    assert config_from_dict(data) == config
    # Through text, which has no tuples and no infinity.
    assert config_from_dict(json.loads(json.dumps(data, allow_nan=False))) == config
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(data))) == config


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dbcache": [{}, {"head": 2, "tail": 1, "max_run": 3, "mask": [1, 0, 1]}],
    "fastercache": [{}, {"temporal": 3, "window": None}, {"guidance": {"every": 3}}],
    "first_block_cache": [{}, {"threshold": "inf"}, {"threshold": 1}],
    "fora": [{"interval": 3}],
    "guidance": [{}, {"tensor_format": "BCHW"}],
    "magcache": [{"ratios": [1, 0.99, 0.98], "steps": 6}],
    "never_reuse": [{}],
    "pab": [{"spatial": 2, "cross": 4, "window": [50, 900.5]}],
    "pyramid_attention_broadcast": [{"temporal": 2}],
    "seacache": [{}, {"probe": "Latents", "max_run": None}],
    "smoothcache": [{"schedule": {"computed": {"ff": [1, 0], "attn1": [1, 1]}}}],
    "step_mask": [{"mask": [1, 0], "regions": {"kind": "EachBlock"}}],
    "taylorseer": [{}, {"lite": True}, {"dtype": None, "regions": "FeedForward"}],
    "teacache": [{"threshold": 0.1, "coefficients": [2, 0.5, 1e-3]}],
    "tgate": [{}, {"gate_step": 4}],
}


def test_every_preset_has_options_here() -> None:
    assert set(OPTIONS) == set(PRESETS)


@pytest.mark.parametrize("name", OPTIONS)
def test_presets(name: str) -> None:
    for options in OPTIONS[name]:
        made = config_from_dict({"method": name, **options})
        assert config_from_dict(config_to_dict(made)) == made


def test_a_preset_is_called_with_its_options() -> None:
    data = {"method": "dbcache", "head": 4, "predictor": {"kind": "Taylor", "order": 2}}
    assert config_from_dict(data) == gc.dbcache(4, predictor=gc.Taylor(2))
    bare = {"method": "step_mask", "mask": [1, 0], "predictor": "Zeros"}
    assert config_from_dict(bare).predictor == parts.Zeros()
    schedule = {"method": "smoothcache", "schedule": json.loads(SCHEDULE.to_json())}
    assert config_from_dict(schedule) == gc.smoothcache(SCHEDULE)
    several = [{"method": "fora", "interval": 2}, {"method": "guidance"}]
    assert config_from_dict({"policies": several}) == (gc.fora(2), gc.GuidanceConfig())
    assert config_from_dict(several) == (gc.fora(2), gc.GuidanceConfig())


def test_smoothcache() -> None:
    made = gc.smoothcache(SCHEDULE)
    assert config_from_dict(config_to_dict(made)) == made


DIFFUSERS = [
    diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=6
    ),
    diffusers.FasterCacheConfig(tensor_format="BFCHW"),
    diffusers.FirstBlockCacheConfig(threshold=0.2),
    diffusers.TaylorSeerCacheConfig(cache_identifiers=["a", "b"]),
    diffusers.TaylorSeerCacheConfig(taylor_factors_dtype=None, use_lite_mode=True),
    diffusers.MagCacheConfig(mag_ratios=[1.0, 0.97, 0.33], num_inference_steps=3),
    diffusers.SeaCacheConfig(max_consecutive_cached=0),
]


@pytest.mark.parametrize("config", DIFFUSERS, ids=lambda c: type(c).__name__)
def test_configs_of_diffusers(config: Any, tmp_path: Path) -> None:
    save_config(config, tmp_path / "c.yaml")
    again = load_config(tmp_path / "c.yaml")
    assert type(again) is type(config)
    assert configuration(again) == configuration(config)
    # The policies that it stands for are data too.
    policies = configuration(config)
    assert configuration(config_from_dict(config_to_dict(policies))) == policies


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"policy{suffix}"
    config = [gc.dbcache(2, mask=[1, 0, 1]), gc.fora(3)]
    save_config(config, path)
    assert load_config(path) == tuple(config)
    assert configuration(path) == configuration(str(path)) == configuration(config)


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "- {method: teacache, threshold: 1e-3}\n- name: x\n  regions: Model\n"
        "  decision: {kind: Interval, every: 2, window: [.inf, 9]}\n"
    )
    with pytest.raises(
        PolicyError, match=r"policy.yaml: config\[1\].decision: .*order"
    ):
        load_config(path)
    path.write_text(path.read_text().replace("[.inf, 9]", "[9, .inf]"))
    teacache, mine = load_config(path)
    assert teacache == gc.teacache(0.001)
    assert mine == Policy("x", gc.Model(), gc.Interval(2, (9, math.inf)))


def test_compile_takes_data(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save_config(gc.fora(2), path)
    expected = run_loop(gc.compile(tiny(), gc.fora(2), backend="eager"), 4)
    compiled: Any = gc.compile(tiny(), path, backend="eager")
    assert same(run_loop(compiled, 4), expected)
    # The file is read once.
    path.unlink()
    assert same(run_loop(copy.deepcopy(compiled), 4), expected)
    compiled.disable_cache()
    compiled.enable_cache({"method": "fora", "interval": 2})
    assert same(run_loop(compiled, 4), expected)


@dataclass(frozen=True)
class Mine(Static):
    """A decision of the user's."""

    def computes(self, step: Step) -> bool:
        """Always."""
        return True


def _weight(step: Step) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Policy("p", gc.Model(), Mine()), r"config.decision is Mine, which is Python"),
        (
            [gc.fora(2), Policy("p", gc.Model(), gc.Threshold(Mine(), 1.0))],  # type: ignore[arg-type]
            r"config\[1\].decision.indicator is Mine",
        ),
        (
            Policy("p", gc.Attention(is_cross=lambda region: True), gc.Interval(2)),
            r"config.regions.is_cross is .*lambda",
        ),
        (
            gc.fastercache(weight=Scalar("rising", _weight)),
            r"config\[0\].predictor.weight, the number rising, is _weight",
        ),
        (
            diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, current_timestep_callback=int
            ),
            r"config.current_timestep_callback is Python.*scheduler=pipe.scheduler",
        ),
        (
            diffusers.MagCacheConfig(
                mag_ratios=torch.ones(3, dtype=torch.float64), num_inference_steps=3
            ),
            r"config.mag_ratios is torch.float64",
        ),
        (3, "int is no cache config"),
    ],
)
def test_python_is_no_data(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=message):
        config_to_dict(config)
    with pytest.raises(PolicyError, match=message):
        save_config(config, tmp_path / "p.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "config must be a dict or a list, not 3"),
        ("fora", "must be a dict or a list"),
        ({}, "is no cache config"),
        ({"mehtod": "fora"}, "'mehtod': did you mean 'method'"),
        ({"residual_dif_threshold": 1}, "did you mean 'residual_diff_threshold'"),
        ({"method": "foraa"}, "config.method cannot be 'foraa': did you mean 'fora'"),
        ({"method": "zzz"}, "known: dbcache, fastercache"),
        ({"method": ["fora"]}, r"cannot be \['fora'\]"),
        ({"method": "fora", "intervall": 2}, "'intervall': did you mean 'interval'"),
        ({"method": "fora"}, "fora needs 'interval'"),
        ({"method": "fora", "interval": "2"}, "config.interval must be a whole number"),
        ({"method": "fora", "interval": 2.5}, "config.interval must be a whole number"),
        (
            {"method": "fora", "interval": True},
            "config.interval must be a whole number",
        ),
        (
            {"method": "fora", "interval": None},
            "config.interval must be a whole number",
        ),
        ({"method": "fora", "interval": 0}, "config: an interval must be a positive"),
        (
            {"method": "teacache", "threshold": "low"},
            "config.threshold must be a number",
        ),
        ({"method": "dbcache", "mask": [1, "0"]}, r"config.mask\[1\] must be a whole"),
        ({"method": "dbcache", "mask": 7}, "config.mask must be a list or null"),
        ({"method": "pab", "window": [1, 2, 3]}, "config.window must be 2 values"),
        ({"method": "dbcache", "predictor": 3}, "predictor must be one of HoldOutput"),
        ({"method": "dbcache", "predictor": "Tailor"}, "did you mean 'Taylor'"),
        ({"method": "dbcache", "predictor": {"order": 1}}, "predictor needs a 'kind'"),
        ({"method": "taylorseer", "dtype": "float33"}, "no dtype 'float33'"),
        ({"method": "taylorseer", "dtype": 32}, "config.dtype must be the name of a"),
        ({"method": "taylorseer", "lite": 1}, "config.lite must be true or false"),
        ({"method": "smoothcache", "schedule": []}, "config.schedule must be a sched"),
        (
            {"method": "smoothcache", "schedule": {"computed": {"a": [2]}}},
            "config.schedule: .*0 or 1",
        ),
        (
            {
                "method": "smoothcache",
                "schedule": {"computed": {"a": [1]}, "modell": ""},
            },
            "did you mean 'model'",
        ),
        (
            {"method": "fastercache", "weight": {"kind": "rising", "name": "x"}},
            "config.weight cannot be 'rising'",
        ),
        (
            {"method": "fastercache", "weight": {"kind": "step", "name": "x", "of": 1}},
            "step has no 'of'",
        ),
        ({"method": "fastercache", "guidance": {"evry": 2}}, "did you mean 'every'"),
        (
            {"policies": [{"method": "dbcache", "head": 0}]},
            r"config.policies\[0\]: .*head",
        ),
        ({"policies": [], "method": "fora"}, "'method' beside it"),
        ({"policies": "fora"}, "config.policies must be a list"),
        ({"name": "a", "regions": "Model"}, "a policy needs 'decision'"),
        (
            {"name": "a b", "regions": "Model", "decision": "Always"},
            "not an identifier",
        ),
        (
            {"name": "a", "regions": {"kind": "Blok"}, "decision": "Always"},
            "config.regions cannot be 'Blok': did you mean 'Blocks'",
        ),
        (
            {
                "name": "a",
                "regions": {"kind": "Attention", "is_cross": "x"},
                "decision": "Always",
            },
            "config.regions.is_cross is a function",
        ),
        (
            {
                "name": "a",
                "regions": "Model",
                "decision": {
                    "kind": "Threshold",
                    "threshold": 1,
                    "indicator": {"kind": "RelativeChange", "max_run": "2"},
                },
            },
            "config.decision.indicator.max_run must be a whole number or null",
        ),
        ({"diffusers": "FirstBlockCacheConfi"}, "did you mean 'FirstBlockCacheConfig'"),
        ({"diffusers": "TextKVCacheConfig"}, "config.diffusers cannot be"),
        (
            {"diffusers": "FirstBlockCacheConfig", "thresh": 1},
            "did you mean 'threshold'",
        ),
        ({"diffusers": "SeaCacheConfig", "residual_order": 5}, "config: .*0 or 1"),
        (
            {"diffusers": "SeaCacheConfig", "raw_vision_callback": "f"},
            "config.raw_vision_callback is a function",
        ),
    ],
)
def test_faults_are_named(data: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        config_from_dict(data)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.toml", "", r"'.*p.toml' is no cache config: .*\.json, \.yaml or \.yml"),
        ("p.json", "{", "p.json cannot be read"),
        ("p.yaml", "a: [", "p.yaml cannot be read"),
        ("p.yaml", "method: fora\nintervall: 2", "p.yaml: config: fora has no"),
        ("p.json", '{"method": "fora", "method": "pab"}', "'method' is given twice"),
        ("p.yaml", "- {a: 1}\n- {b: {c: 1, c: 2}}", "'c' is given twice"),
        ("p.yaml", "&a [*a]", "p.yaml: an alias stands in what it names"),
        ("p.yaml", "a: 1\n---\nb: 1", "cannot be read.*a single document"),
        ("none.json", None, "none.json cannot be read: .*No such file"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PolicyError, match=f"(?s){message}"):
        load_config(tmp_path / name)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be written"):
        save_config(gc.fora(2), tmp_path / "none" / "p.yaml")
