"""cache-dit's options: the same steps where they mean the same, refused elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest

import graphcache as gc
from graphcache import PolicyError
from graphcache.policy import Blocks, Ends, Mask, Policy, config_from_dict, dbcache
from tests.models import run_loop, same, tiny
from tests.references.db_cache import Limits, db_cache


def test_the_defaults_are_its_defaults() -> None:
    assert config_from_dict({"Fn_compute_blocks": 8}) == dbcache()
    assert config_from_dict({"cache_type": "DBCache"}) == dbcache()
    everything_off = {
        "cache_config": {
            "Fn_compute_blocks": None,
            "max_cached_steps": -1,
            "max_accumulated_residual_diff_threshold": None,
            "steps_computation_policy": "dynamic",
            "enable_taylorseer": False,
            "enable_dmd": False,
            "dmd_rank": 3,
            "cfg_diff_compute_separate": True,
            "important_condition_threshold": 0.0,
            "downsample_factor": 1,
            "enable_separate_cfg": True,
        }
    }
    assert config_from_dict(everything_off) == dbcache()


def test_options() -> None:
    read = config_from_dict(
        {
            "method": "dbcache",
            "Fn_compute_blocks": 2,
            "Bn_compute_blocks": 1,
            "residual_diff_threshold": 0.12,
            "max_warmup_steps": 4,
            "max_cached_steps": 9,
            "max_continuous_cached_steps": 3,
            "num_inference_steps": 28,
            "enable_taylorseer": True,
            "enable_encoder_taylorseer": True,
            "taylorseer_order": 2,
        }
    )
    made = dbcache(
        2,
        1,
        threshold=0.12,
        max_run=3,
        max_reused=9,
        predictor=gc.TaylorResidual(2),
    )
    assert read.regions == made.regions
    assert read.predictor == made.predictor
    assert read.decision.indicator == made.decision.indicator
    assert read.decision.threshold == 0.12
    assert read.decision.forced == Ends(4, steps=28)


def test_a_mask_ends_the_warm_up() -> None:
    mask = [1, 0, 1, 0, 0]
    read = config_from_dict({"steps_computation_mask": mask, "Fn_compute_blocks": 1})
    # Its default of eight warm-up steps would compute all of them.
    assert read.decision.forced == Mask((1, 0, 1, 0, 0), 5)
    static = config_from_dict(
        {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    )
    assert static == Policy(
        "dbcache", Blocks(8, 0), Mask((1, 0, 1, 0, 0), 5), static.predictor
    )


def test_a_named_mask() -> None:
    options = {"num_inference_steps": 28, "steps_computation_mask": "slow"}
    read = config_from_dict(options).decision.forced
    text = "".join(str(int(value)) for value in read.computed)
    # As the comment of cache-dit has it.
    assert text == "1111111101110011100110010001"
    for name, count in {"medium": 15, "fast": 11, "ultra": 8}.items():
        named = config_from_dict({**options, "steps_computation_mask": name})
        assert sum(named.decision.forced.computed) == count


def test_a_warm_up_with_an_interval() -> None:
    read = config_from_dict(
        {"max_warmup_steps": 5, "warmup_interval": 2, "num_inference_steps": 8}
    )
    assert read.decision.forced == Mask((1, 0, 1, 0, 1, 0, 0, 0), 8)


@pytest.mark.parametrize(
    ("given", "threshold"), [(0.3, 0.3), (1, math.inf), (4.0, math.inf), (-1, 0.0)]
)
def test_thresholds(given: float, threshold: float) -> None:
    read = config_from_dict({"residual_diff_threshold": given})
    assert read.decision.threshold == threshold


def test_a_limit_of_no_steps_never_reuses() -> None:
    for name in ("max_cached_steps", "max_continuous_cached_steps"):
        assert config_from_dict({name: 0}).decision.threshold == 0


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({"max_warmup_steps": 3}, Limits(warmup=3)),
        (
            {"max_warmup_steps": 2, "max_continuous_cached_steps": 2},
            Limits(warmup=2, max_run=2),
        ),
        ({"max_warmup_steps": 1, "max_cached_steps": 3}, Limits(1, max_cached=3)),
        (
            {"steps_computation_mask": [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]},
            Limits(mask=[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
        ),
        (
            {
                "steps_computation_mask": [1, 0, 0, 1, 0, 0, 0, 0, 0, 1],
                "steps_computation_policy": "static",
            },
            Limits(mask=[1, 0, 0, 1, 0, 0, 0, 0, 0, 1], static=True),
        ),
    ],
)
def test_the_steps_are_those_of_the_method(
    options: dict[str, Any], limits: Limits
) -> None:
    config = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.9, **options}
    ours = run_loop(gc.compile(tiny(), config, backend="eager"), 10)
    reference = tiny()
    with db_cache(reference, 0.9, head=1, limits=limits) as log:
        theirs = run_loop(reference, 10)
    assert same(ours, theirs)
    assert log is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"Fn_compute_block": 8, "Bn_compute_blocks": 1},
            "'Fn_compute_block': did you",
        ),
        ({"Fn_compute_blocks": 0}, "number of head blocks must be a positive"),
        ({"Fn_compute_blocks": "8"}, "config.Fn_compute_blocks must be a whole number"),
        ({"cache_config": 3}, "config.cache_config must be a dict"),
        ({"cache_type": "DBPrune"}, "cache_type='DBPrune' cannot be had"),
        ({"cfg_diff_compute_separate": False}, "by its own change"),
        (
            {"max_accumulated_residual_diff_threshold": 0.3},
            "those of computed steps too",
        ),
        ({"l1_hidden_states_diff_threshold": 0.3}, "give residual_diff_threshold"),
        ({"important_condition_threshold": 0.1}, "over all tokens"),
        ({"downsample_factor": 2}, "over all channels"),
        ({"force_refresh_step_hint": 4}, "not reset in mid-loop"),
        ({"enable_dmd": True}, "no such forecast"),
        ({"enable_foca": True}, "no such forecast"),
        ({"calibrator_config": {}}, "write enable_taylorseer"),
        (
            {"cache_config": {}, "quantize_config": {}},
            "quantise the transformer before",
        ),
        ({"cache_config": {}, "parallelism_config": {}}, "several devices"),
        ({"cache_config": {}, "attention_backend": "flash"}, "set_attention_backend"),
        ({"enable_taylorseer": True}, "set enable_encoder_taylorseer to true"),
        (
            {
                "enable_taylorseer": True,
                "enable_encoder_taylorseer": True,
                "taylorseer_cache_type": "residuals",
            },
            "did you mean 'residual'",
        ),
        ({"warmup_interval": 2}, "needs num_inference_steps"),
        ({"warmup_interval": 0}, "warmup_interval must be a positive integer"),
        ({"steps_computation_mask": "fast"}, "num_inference_steps=28, not None"),
        (
            {"steps_computation_mask": "fats", "num_inference_steps": 28},
            "did you mean 'fast'",
        ),
        (
            {"steps_computation_mask": [1, 0], "num_inference_steps": 28},
            "has 2 entries for 28 steps",
        ),
        ({"steps_computation_policy": "static"}, "needs a steps_computation_mask"),
        ({"steps_computation_policy": "statc"}, "'dynamic' or 'static'"),
    ],
)
def test_what_means_something_else_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        config_from_dict(options)
