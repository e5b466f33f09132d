"""The step clock under diffusers' real schedulers, driven as their pipelines do."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.runtime.loops import Steps, clock, denoise, expected, scheduled

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

FIRST_ORDER = (
    diffusers.FlowMatchEulerDiscreteScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.UniPCMultistepScheduler,
)
SECOND_ORDER = (
    diffusers.HeunDiscreteScheduler,
    diffusers.FlowMatchHeunDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
)
NOT_COUNTING = (diffusers.DDIMScheduler, diffusers.CogVideoXDDIMScheduler)
COUNTING = (*FIRST_ORDER, *SECOND_ORDER)
GUIDANCE = ((None,), (None, None), ("cond_uncond",), ("cond", "uncond"))
CONTEXTS = (("cond",), ("cond", "uncond"))

every_scheduler = pytest.mark.parametrize("kind", [*COUNTING, *NOT_COUNTING])
counting = pytest.mark.parametrize("kind", COUNTING)
not_counting = pytest.mark.parametrize("kind", NOT_COUNTING)
every_guidance = pytest.mark.parametrize("streams", GUIDANCE)
every_context = pytest.mark.parametrize("streams", CONTEXTS)


def names_of(streams: tuple[str | None, ...]) -> list[str]:
    return [name or f"call {order}" for order, name in enumerate(streams)]


def unreadable(t: Tensor) -> Tensor:
    """A timestep argument that cannot be read."""
    return torch.empty(2, device="meta")


@every_guidance
@every_scheduler
def test_attached(kind: Any, streams: tuple[str | None, ...]) -> None:
    scheduler = scheduled(kind, 6)
    subject = clock(scheduler=scheduler)
    for steps in (6, 4):
        # The next generation begins with neither a reset nor a word.
        scheduler.set_timesteps(steps)
        found = denoise([subject], scheduler, streams=streams)
        assert found == dict.fromkeys(names_of(streams), expected(scheduler))


@every_guidance
@every_scheduler
def test_image_to_image_starts_in_the_middle(
    kind: Any, streams: tuple[str | None, ...]
) -> None:
    scheduler = scheduled(kind, 6)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(3)
    subject = clock(scheduler=scheduler)
    found = denoise([subject], scheduler, begin=3, streams=streams)
    assert found == dict.fromkeys(names_of(streams), expected(scheduler, begin=3))


@every_guidance
@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_a_begin_that_nobody_told_the_scheduler_is_found(
    kind: Any, streams: tuple[str | None, ...]
) -> None:
    """As in Wan's video to video."""
    scheduler = scheduled(kind, 6)
    subject = clock(scheduler=scheduler)
    found = denoise([subject], scheduler, begin=3, streams=streams)
    assert found == dict.fromkeys(names_of(streams), expected(scheduler, begin=3))


@every_guidance
@counting
def test_a_scheduler_that_knows_where_it_begins_saves_every_read(
    kind: Any, streams: tuple[str | None, ...]
) -> None:
    scheduler = scheduled(kind, 6)
    scheduler.set_begin_index(0)
    subject = clock(scheduler=scheduler)
    found = denoise([subject], scheduler, streams=streams, argument=unreadable)
    assert found == dict.fromkeys(names_of(streams), expected(scheduler))


@every_scheduler
def test_reads_of_the_argument(kind: Any) -> None:
    """One a generation where the scheduler counts, one a stream where it does not."""
    scheduler = scheduled(kind, 6)
    reads: list[float] = []

    class Read(Tensor):
        """A timestep that tells when it is read."""

        def __float__(self) -> float:
            reads.append(float(self.as_subclass(Tensor)))
            return reads[-1]

    denoise(
        [clock(scheduler=scheduler)],
        scheduler,
        streams=("cond", "uncond"),
        argument=lambda t: t.clone().as_subclass(Read),
    )
    first = float(scheduler.timesteps[0])
    assert reads == [first] * (1 if kind in COUNTING else 2)


@every_context
@pytest.mark.parametrize("kind", COUNTING)
def test_contexts_that_say_the_place(kind: Any, streams: tuple[str, ...]) -> None:
    scheduler = scheduled(kind, 6)
    subject = clock()
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        found = denoise([subject], scheduler, streams=streams, placed=True)
        assert found == dict.fromkeys(streams, expected(scheduler))


@every_context
@every_scheduler
def test_names_alone_and_the_argument(kind: Any, streams: tuple[str, ...]) -> None:
    scheduler = scheduled(kind, 6)
    subject = clock()
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        found = denoise([subject], scheduler, streams=streams)
        assert found == dict.fromkeys(streams, expected(scheduler, known=False))


@pytest.mark.parametrize("kind", [*FIRST_ORDER, *NOT_COUNTING])
@pytest.mark.parametrize("streams", [(None,), (None, None)])
def test_nothing_but_the_argument(kind: Any, streams: tuple[None, ...]) -> None:
    scheduler = scheduled(kind, 6)
    subject = clock()
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        found = denoise([subject], scheduler, streams=streams)
        want = expected(scheduler, known=False)
        assert found == dict.fromkeys(names_of(streams), want)


@pytest.mark.parametrize("streams", [(None,), (None, None)])
def test_a_second_call_at_one_timestep_is_never_the_stream_of_another(
    streams: tuple[None, ...],
) -> None:
    """Heun, with nothing but the argument: more streams than there are, and no fewer.

    The first of each pair of calls at a timestep goes on where the first of the last
    pair was; with two streams, the first calls of both, then the second calls.
    """
    scheduler = scheduled(diffusers.HeunDiscreteScheduler, 5)
    found = denoise([clock()], scheduler, streams=streams)
    timesteps = list(dict.fromkeys(scheduler.timesteps.tolist()))
    for order in range(2 * len(streams)):
        late = order >= len(streams)
        seen = [step.timestep for step in found[f"call {order}"]]
        assert seen == timesteps[1 if late else 0 :]
    assert len(found) == 2 * len(streams)


def test_a_scheduler_that_repeats_a_timestep_and_does_not_count() -> None:
    """PNDM: told apart by contexts; without, the repeated call is a stream apart."""
    scheduler = scheduled(diffusers.PNDMScheduler, 5, skip_prk_steps=True)
    subject = clock(scheduler=scheduler)
    found = denoise([subject], scheduler, streams=("cond",))
    assert found == {"cond": expected(scheduler)}
    scheduler.set_timesteps(5)
    found = denoise([subject], scheduler)
    assert [len(steps) for steps in found.values()] == [5, 1]


@every_guidance
@every_scheduler
def test_two_modules_share_a_loop(kind: Any, streams: tuple[str | None, ...]) -> None:
    """Wan 2.2: `transformer` runs the first part of the loop, `transformer_2` the rest.

    Where the loop is goes on; the calls of a stream are counted by each.
    """
    scheduler = scheduled(kind, 6)
    subjects = [clock(scheduler=scheduler) for _ in range(2)]
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        found = denoise(subjects, scheduler, streams=streams)
        check_parts(found, scheduler, names_of(streams))


@counting
def test_two_modules_share_a_loop_that_contexts_describe(kind: Any) -> None:
    scheduler = scheduled(kind, 6)
    subjects = [clock(), clock()]
    streams = ("cond", "uncond")
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        found = denoise(subjects, scheduler, streams=streams, placed=True)
        check_parts(found, scheduler, list(streams))


def check_parts(found: Steps, scheduler: Any, names: list[str]) -> None:
    """The second module goes on at the place where the first stopped."""
    want = expected(scheduler)
    half = -(-len(want) // 2)
    assert list(found) == names
    for steps in found.values():
        assert [s.index for s in steps] == [s.index % half for s in want]
        places = [(s.timestep, s.position, s.count, s.sigma) for s in steps]
        assert places == [(s.timestep, s.position, s.count, s.sigma) for s in want]


@every_guidance
@every_scheduler
def test_given_up_between_calls(kind: Any, streams: tuple[str | None, ...]) -> None:
    scheduler = scheduled(kind, 6)
    subject = clock(scheduler=scheduler)
    for calls in range(1, 5):
        denoise([subject], scheduler, streams=streams, calls=calls)
        scheduler.set_timesteps(6)
        found = denoise([subject], scheduler, streams=streams)
        assert found == dict.fromkeys(names_of(streams), expected(scheduler))
        scheduler.set_timesteps(6)


@every_context
@pytest.mark.parametrize("placed", [True, False])
@counting
def test_given_up_between_calls_and_told_by_contexts(
    kind: Any, streams: tuple[str, ...], placed: bool
) -> None:
    scheduler = scheduled(kind, 4)
    subject = clock()
    for calls in range(1, 5):
        denoise([subject], scheduler, streams=streams, placed=placed, calls=calls)
        scheduler.set_timesteps(4)
        found = denoise([subject], scheduler, streams=streams, placed=placed)
        assert found == dict.fromkeys(streams, expected(scheduler, known=placed))
        scheduler.set_timesteps(4)


@pytest.mark.parametrize("streams", [(None,), (None, None)])
@pytest.mark.parametrize("calls", range(1, 6))
def test_given_up_between_calls_with_nothing_but_the_argument(
    streams: tuple[None, ...], calls: int
) -> None:
    """Told from the second step on.

    In the first step, the calls of the new loop look like further streams of it: they
    begin anew, and what follows goes on with what the abandoned calls left.
    """
    scheduler = scheduled(diffusers.DDIMScheduler, 6)
    subject = clock()
    denoise([subject], scheduler, streams=streams, calls=calls)
    scheduler.set_timesteps(6)
    found = denoise([subject], scheduler, streams=streams)
    told = found == dict.fromkeys(names_of(streams), expected(scheduler, known=False))
    assert told == (calls > len(streams))


def test_a_scheduler_that_counts_up_says_so() -> None:
    """Mochi's: what is said of a step falls as the noise does."""
    kind = partial(diffusers.FlowMatchEulerDiscreteScheduler, invert_sigmas=True)
    scheduler = scheduled(kind, 6)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps == sorted(timesteps)
    for streams in GUIDANCE:
        scheduler.set_timesteps(6)
        found = denoise([clock(scheduler=scheduler)], scheduler, streams=streams)
        for steps in found.values():
            assert [step.index for step in steps] == list(range(6))
            assert [step.position for step in steps] == list(range(6))
            assert [s.timestep for s in steps] == [1000 - t for t in timesteps]
            sigmas = [1.0 - float(sigma) for sigma in scheduler.sigmas[:6]]
            assert [step.sigma for step in steps] == sigmas


@not_counting
def test_a_rounded_argument_is_found_in_the_schedule(kind: Any) -> None:
    scheduler = scheduled(kind, 20)
    found = denoise(
        [clock(scheduler=scheduler)],
        scheduler,
        begin=4,
        argument=lambda t: t.to(torch.bfloat16).expand(2),
    )
    assert found == {"call 0": expected(scheduler, begin=4)}


@not_counting
def test_a_loop_over_the_same_timesteps_begins_when_all_were_seen(kind: Any) -> None:
    scheduler = scheduled(kind, 5)
    subject = clock(scheduler=scheduler)
    for _ in range(2):
        found = denoise([subject], scheduler, begin=1, streams=("cond",))
        assert found == {"cond": expected(scheduler, begin=1)}
    assert subject.stats.resets == 1
