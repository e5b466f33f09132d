"""What the host reads while a forward is traced, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphcache import CaptureError
from graphcache.capture.known import HostRead, KnownValues
from graphcache.passes.find_regions import FindRegions
from tests.capture.running import captured, equal, run
from tests.models import TinyAttention

MASK = torch.tensor([[True, True, False, True], [True, False, False, True]])
IDS = torch.tensor([3, 1, 0, 2])


def inputs(seed: int = 0, **others: Any) -> dict[str, Any]:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    given = {"x": x, "timestep": torch.tensor([5.0]), "mask": MASK, "ids": IDS}
    return {**given, **others}


class Reading(nn.Module):
    """Works out something in which the host reads a value."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, timestep: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """f32[2, 4, 3], f32[1], bool[2, 4] and i64[4] to anything."""
        return self.function(self, x, timestep, mask, ids)


def item(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[:, : mask.sum(1).max().item()]


def tolist(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([x[0, n] for n in mask.sum(1).tolist()])


def boolean(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x if torch.all(mask) else x * mask[..., None]


def comparison(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x + ids.max() if ids.max() > ids[0] - 1 else x


def integer(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x.repeat(int(ids[0]), 1, 1) + float(ids[2])


def index(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([x[:, n] for n in range(ids[3])])


def slices(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    lengths = mask.sum(1)
    return torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])


def select(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[:, ids[3]]


def sizes(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([x.sum((0, 2))[:2], torch.arange(ids[0]), torch.zeros(ids[3])])


def numpy(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[:, ids.numpy().argsort()[0]]


def membership(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x + 1 if 3 in ids else x


def made_of_reads(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[torch.tensor([ids[1], ids[2]])]


def like_the_latents(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    # Of the latents, only the type is asked for.
    zeros = torch.zeros_like(x[..., 0], dtype=torch.long) + ids.to(x.device)
    return x + int(zeros.type_as(ids).sum())


def stacked(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    # As many from each row, which nothing but the mask can tell.
    kept = [row[keep] for row, keep in zip(x, mask | ids.ge(1), strict=True)]
    return torch.stack([row[:2] for row in kept]) if len(kept[0]) > 2 else x


def places(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    (kept,) = mask[0].nonzero(as_tuple=True)
    return x[:, kept] if kept.numel() == 3 else x


def one_argument_where(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Any:
    rows, columns = torch.where(mask)
    return x[rows, columns] if len(rows) > 1 else x


def repeated(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    long = x.repeat_interleave(ids, dim=1)
    flat = torch.repeat_interleave(mask[0], ids)
    return long[:, flat] if bool(flat.any()) else long


def masked_select(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    chosen = torch.masked_select(x, mask[..., None])
    return chosen if chosen.shape[0] > 3 else x


def written(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    positions = torch.zeros_like(ids)
    rows = positions[1:]
    rows[mask[0, 1:]] = 2
    positions[0] = ids[0]
    return x[:, : positions.sum().item()] if positions.max() < 9 else x


READS = {
    "mask": [item, tolist, boolean, slices],
    "ids": [
        *(comparison, integer, index, select, sizes, numpy, membership),
        *(made_of_reads, like_the_latents),
    ],
    "ids mask": [stacked, repeated, written],
    "mask shapes": [places, one_argument_where, masked_select],
}


@pytest.mark.parametrize(
    ("read", "function"),
    [(names, function) for names in READS for function in READS[names]],
)
def test_reads_of_what_does_not_change_are_compiled_in(
    read: str, function: Callable[..., Tensor]
) -> None:
    module = Reading(function)
    found = captured(module, inputs())
    assert found.read == {name for name in read.split() if name != "shapes"}
    for seed in (0, 1):
        given = inputs(seed, timestep=torch.tensor([float(seed)]))
        assert equal(run(found, module, given), module(**given))


def dynamic(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[mask].sum(0)


def test_a_shape_that_a_graph_can_have_is_not_compiled_in() -> None:
    module = Reading(dynamic)
    found = captured(module, inputs())
    assert not found.read
    other = inputs(1, mask=~MASK)
    assert equal(run(found, module, other), module(**other))


def constants(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    counts = torch.full((2,), 2)
    return torch.cat([x[n, : counts[n]] for n in range(counts.tolist()[0])])


def test_reads_of_constants_depend_on_nothing() -> None:
    module = Reading(constants)
    found = captured(module, inputs())
    assert not found.read
    assert equal(run(found, module, inputs(1)), module(**inputs(1)))


def of_latents(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def of_timestep(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x[: int((t + ids[2]).item())]


def of_weight(self: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x * self.weight.sum().item()


def of_index(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return x if ids[x.argmax(1)[0, 0] * 0 :].sum() > 0 else -x


def through_a_view(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    zeros[1:].view(3).add_(x.sum())
    return x if zeros.sum() > 0 else -x


def through_an_item(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    view = zeros[2:]
    zeros[2] = x.sum()
    return x if view[0] > 0 else -x


def through_data(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    zeros.data.copy_(x[0, :, 0])
    return x if zeros.sum() > 0 else -x


def through_out(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    torch.add(x[0, :, 0], 1, out=zeros)
    return x if zeros.sum() > 0 else -x


def through_a_list(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    torch._foreach_add_([zeros], [x[0, :, 0]])
    return x if zeros.sum() > 0 else -x


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (of_latents, "x"),
        (of_timestep, "timestep"),
        (of_weight, "the weights"),
        (of_index, "x"),
        (through_a_view, "what was written to it"),
        (through_an_item, "what was written to it"),
        (through_data, "what was written to it"),
        (through_out, "x"),
        (through_a_list, "x"),
    ],
)
def test_reads_of_what_changes_are_refused(
    function: Callable[..., Tensor], names: str
) -> None:
    with pytest.raises(CaptureError) as caught:
        captured(Reading(function), inputs())
    message = str(caught.value)
    assert f"test_known.py:{function.__code__.co_firstlineno + 1}" in message or (
        f"in {function.__name__}" in message
    )
    assert f"asks for a value that depends on {names}." in message


def test_what_another_view_was_written_from_is_read_too() -> None:
    def aliased(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        zeros = torch.zeros(4, dtype=torch.long)
        view = zeros[2:]
        zeros[2] = mask.sum()
        return x + view[0].item()

    assert captured(Reading(aliased), inputs()).read == {"mask"}


def test_an_argument_that_is_written_to_stays_as_it_is() -> None:
    def writing(_: Any, x: Tensor, t: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        return x + ids.add_(1).sum().item()

    given = inputs(ids=IDS.clone())
    with pytest.raises(CaptureError, match="forward writes to ids"):
        captured(Reading(writing), given)
    assert torch.equal(given["ids"], IDS)


# A short program over a few tensors: what is read is right, and depends on nothing but
# what it is said to depend on.
Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "view", "row", "write", "write row", "add_", "copy_", "clone"]
        ),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=8,
)


def steps(program: list[Step], tensors: list[Tensor]) -> list[Tensor]:
    """Run a program: each step makes a tensor of two, or writes to one."""
    held = [*tensors, torch.zeros(2, 2, dtype=torch.long)]
    for name, left, right in program:
        a, b = held[left % len(held)], held[right % len(held)]
        if name == "add":
            held.append(a + b)
        elif name == "view":
            held.append(a.view(4).view(2, 2))
        elif name == "row":
            held.append(a[1:].expand(2, 2))
        elif name == "clone":
            held.append(a.clone())
        elif name == "write":
            a.select(0, 0).view(2)[:] = b[1]
        elif name == "write row":
            a[1] = b[0].clone()
        elif name == "add_":
            a[:1].add_(b[1])
        else:
            a[1:].copy_(b[:1].clone())
    return held


def fresh(*seeds: int) -> list[Tensor]:
    return [torch.full((2, 2), 10**n) * seed for n, seed in enumerate(seeds)]


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 12))
def test_answers_are_right_and_their_sources_complete(
    program: list[Step], place: int
) -> None:
    program = [step for step in program if step[0] != "row" or step[1] < 2]
    reals = fresh(1, 2, 3)

    def answer(tensors: list[Tensor]) -> list[int] | None:
        try:
            held = steps(program, tensors)
        except (RuntimeError, ValueError):
            # A write to an expanded row, or a view of one, which torch refuses.
            return None
        return held[place % len(held)].flatten().tolist()

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = [fake.from_tensor(real) for real in reals]
    mode = KnownValues(
        {"a": (stand_ins[0], reals[0]), "b": (stand_ins[1], reals[1])},
        {"latents": stand_ins[2]},
        shapes=True,
    )
    expected = answer(fresh(1, 2, 3))
    if expected is None:
        return
    try:
        with fake, mode.listening():
            found = answer(stand_ins)
    except HostRead:
        return
    assert found == expected
    for name, seeds in (("a", (5, 2, 3)), ("b", (1, 5, 3)), ("latents", (1, 2, 5))):
        if name not in mode.read:
            assert answer(fresh(*seeds)) == expected


def test_nothing_is_known_of_a_module_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module, dumb = Reading(item), Reading(dynamic)
    assert equal(run(captured(dumb, inputs()), dumb, inputs()), dumb(**inputs()))
    with pytest.raises(CaptureError, match="in item"):
        captured(module, inputs())


class Compacting(nn.Module):
    """Attends to the tokens that a mask keeps, inside its attention or outside."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.attn = MaskedAttention()
        self.outer = TinyAttention()

    def forward(self, x: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """f32[1, 4, 8], f32[1] and bool[4] to f32[1, 4, 8]."""
        if self.inside:
            return x + self.attn(x, mask)
        return x + self.outer(x[:, mask]).mean(1, keepdim=True)


class MaskedAttention(TinyAttention):
    """Leaves out what the mask leaves out."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """f32[1, 4, 8] and bool[4] to f32[1, 4, 8]."""
        query, key, value = self.to_q(x), self.to_k(x)[:, mask], self.to_v(x)[:, mask]
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("inside", [True, False])
def test_a_shape_is_compiled_in_where_it_would_spread(inside: bool) -> None:
    module = Compacting(inside=inside)
    given = {
        "x": torch.randn(1, 4, 8),
        "timestep": torch.ones(1),
        "mask": torch.tensor([True, False, True, True]),
    }
    found = captured(module, given)
    assert found.read == (set() if inside else {"mask"})
    assert equal(run(found, module, given), module(**given))
    regions = FindRegions().run(found.program).program.regions
    assert [region.name for region in regions] == ["attn" if inside else "outer"]
