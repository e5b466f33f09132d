"""Order: whose turn it is among the calls of one step that no context names."""

from __future__ import annotations

from graphcache.runtime.prompts import Given
from graphcache.runtime.streams import Stream

MOST_STREAMS = 8
"""So many calls at one step can be streams of their own."""


class Line:
    """The streams without a context, in the order in which they began.

    Attributes:
        order: Which call of the step this is, from 0.
    """

    def __init__(self) -> None:
        self.order = 0
        self._step = 0
        self._calls = 0
        self._streams: list[Stream] = []

    def next_call(self) -> None:
        """Another call at the same step."""
        self.order += 1

    def next_step(self) -> None:
        """The first call of another step."""
        self.order = 0
        self._step += 1

    def clear(self, *, keep_turn: bool = False) -> None:
        """Forget the streams.

        Args:
            keep_turn: Whether the step goes on, so that the next call is no first one.
        """
        self._streams.clear()
        if not keep_turn:
            self.order = 0

    def turn_of(self, given: Given | None) -> str:
        """Name of the stream whose turn it is.

        Args:
            given: What the call is given.
        """
        if given is None or not self._knows_prompts(given):
            return f"call {self.order}"
        same = [stream for stream in self._streams if _is_of(stream, given)]
        if not same:
            known = [s for s in self._streams if s.turn != self._step]
            # Of another shape, or with other arguments, it may still be the same.
            known.sort(key=lambda stream: not _is_like(stream, given))
            return known[0].name if known else self._new()
        free = [stream for stream in same if stream.turn != self._step]
        if free:
            return free[0].name
        # All of this prompt were called at this step already.
        latest = min(same, key=lambda stream: stream.latest)
        assert latest.prompt is not None
        if latest.since == self._step or latest.prompt.saw(given):
            return self._new()
        return latest.name

    def join(self, stream: Stream) -> None:
        """The call belongs to a stream."""
        if stream not in self._streams:
            self._streams.append(stream)
            stream.since = self._step
        self._calls += 1
        stream.turn, stream.latest = self._step, self._calls

    def doubtful(self, given: Given | None) -> bool:
        """Whether this call, if the step is the same, looks like one of the next step.

        A third call at one step does, and one with a prompt that was given already.
        """
        again = given is not None and given.prompt is not None
        again = again and any(
            _is_of(stream, given) for stream in self._streams if given is not None
        )
        return self.order >= 1 or again

    def _knows_prompts(self, given: Given) -> bool:
        if given.prompt is not None:
            return True
        return any(stream.has_prompt for stream in self._streams)

    def _new(self) -> str:
        return f"call {len(self._streams)}"


def _is_like(stream: Stream, given: Given) -> bool:
    return stream.prompt is not None and stream.prompt.is_like(given)


def _is_of(stream: Stream, given: Given) -> bool:
    return stream.prompt is not None and stream.prompt.is_of(given)
