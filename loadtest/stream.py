"""What an answer's events mean: typed JSON in, token times and counts out. Pure; time is an argument."""

import msgspec

from loadtest.record import RequestError


class Details(msgspec.Struct, gc=False):
    """Part of usage."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts by the server's own account."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Delta(msgspec.Struct, gc=False):
    """A chat chunk's text, under the names servers use for it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[object] | None = None


class Choice(msgspec.Struct, gc=False):
    """One answer's part of a chunk; `text` for completions, `delta` for chat."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    def has_content(self) -> bool:
        """Whether it shows the reader anything new. A chat stream's opening role chunk does not."""
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(self.text or delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class Event(msgspec.Struct, gc=False):
    """One `data:` payload."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: object = None


class StreamReading:
    """Follows one answer event by event. Fields are read by the client once the stream is over."""

    def __init__(self, continuous_usage: bool) -> None:
        self._continuous = continuous_usage
        self._decode = msgspec.json.Decoder(Event).decode
        self._counted = 0
        self._first_tokens = 1
        self._num_together = 0  # later tokens that came with the latest chunk
        self.first: float | None = None
        self.last = 0.0
        self.itls: list[float] = []
        self.num_chunks = 0
        self.num_carried = 0
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.answered = False
        """Set by the client once the response's head was good."""
        self.done_at: float | None = None

    def observe(self, payload: bytes, now: float) -> None:
        """Take one event's data that arrived at `now`. Raises RequestError for an error event or bad JSON."""
        if payload == b"[DONE]":
            self.done_at = now
            return
        try:
            event = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise RequestError("malformed", f"{problem}: {payload[:80]!r}") from problem
        if event.error is not None:
            raise RequestError("stream_error", msgspec.json.encode(event.error).decode())
        has_content = False
        for choice in event.choices or ():
            if choice.finish_reason:
                self._finish(choice.finish_reason)
            has_content = has_content or choice.has_content()
        num_tokens = int(has_content)
        if event.usage is not None:
            self.usage = event.usage
            if event.choices and self._continuous:
                num_tokens = self._counted_anew(event.usage, num_tokens)
        if num_tokens:
            self._mark(num_tokens, now)

    def _finish(self, finish_reason: str) -> None:
        self.finish_reason = finish_reason
        if finish_reason in ("error", "abort"):
            raise RequestError("stream_error", f"finish_reason {finish_reason}")

    def _counted_anew(self, usage: Usage, num_seen: int) -> int:
        """Tokens since the last count, by the server's; `num_seen` where it gives none."""
        if usage.completion_tokens is None:
            return num_seen
        num_new = usage.completion_tokens - self._counted
        self._counted = usage.completion_tokens
        return max(0, num_new)

    def _mark(self, num_tokens: int, now: float) -> None:
        self.num_chunks += 1
        self.num_carried += num_tokens
        if self.first is None:
            self.first, self._first_tokens = now, num_tokens
        elif now == self.last and self._num_together:
            # Read together with the chunk before, as from a server that makes several tokens in a step.
            seconds = self.itls[-1] * self._num_together
            del self.itls[-self._num_together :]
            self._share(seconds, self._num_together + num_tokens)
        else:
            self._share(now - self.last, num_tokens)
        self.last = now

    def _share(self, seconds: float, num_tokens: int) -> None:
        """Tokens that came together are as many gaps of equal length: one weighs the same however it was sent."""
        self._num_together = num_tokens
        self.itls += [seconds / num_tokens] * num_tokens

    @property
    def complete(self) -> bool:
        """Whether the server said that the answer was over."""
        return self.done_at is not None or self.finish_reason is not None

    @property
    def output_tokens(self) -> int:
        """The server's count, or what the chunks carried where it gave none."""
        if self.usage is not None and self.usage.completion_tokens is not None:
            return self.usage.completion_tokens
        return self.num_carried

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first chunk; None where a second chunk never came."""
        num_later = self.output_tokens - self._first_tokens
        if self.first is None or self.num_chunks < 2 or num_later < 1:
            return None
        return (self.last - self.first) / num_later
