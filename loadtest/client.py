"""Sends one request and follows its stream. Every way it can end becomes a Record; nothing is raised or lost."""

from dataclasses import dataclass

from loadtest.config import RequestOptions
from loadtest.connection import Head, ProtocolError
from loadtest.payload import PATHS, BodyWriter, endpoint_url
from loadtest.record import Outcome, Record, RequestError, reason
from loadtest.session import Session, with_body
from loadtest.sse import SSEParser
from loadtest.stream import StreamReading
from loadtest.workload import Request

ERROR_BYTES = 2000


@dataclass(frozen=True)
class _Ending:
    outcome: Outcome
    kind: str | None = None
    detail: str | None = None


class Streamed:
    """An `Answer` that reads events where there are any, the server's words where it refused."""

    def __init__(self, reading: StreamReading, leave_after: int | None) -> None:
        self.status = 0
        self._refusal = b""
        self._reading = reading
        self._leave_after = leave_after
        self._left = False
        self._parser = SSEParser()

    def begin(self, head: Head) -> bool:
        """See `Answer`. Raises RequestError for what is no event stream."""
        self.status = head.status
        if head.status != 200:
            return True
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = head.headers.get("content-encoding", "identity")
        if kind != "text/event-stream":
            raise RequestError("malformed", f"content type {kind}, expected text/event-stream")
        if coding != "identity":
            raise RequestError("malformed", f"content encoding {coding}, which is not in accept-encoding")
        self._reading.answered = True
        self._left = self._leave_after == 0
        return not self._left

    def take(self, data: bytes, now: float) -> bool:
        """See `Answer`. Raises RequestError for an error event or what is no event."""
        if self.status != 200:
            self._refusal += data
            return len(self._refusal) < ERROR_BYTES
        reading = self._reading
        for payload in self._parser.feed(data):
            reading.observe(payload, now)
        if self._leave_after is not None:
            self._left = reading.num_chunks >= self._leave_after and not reading.complete
        return not self._left

    @property
    def text(self) -> str:
        """What the server said when it refused."""
        return self._refusal[:ERROR_BYTES].decode(errors="replace")

    def check_end(self) -> None:
        """Called once the response is over. Raises RequestError unless it was whole, or left on purpose."""
        if self.status != 200:
            raise RequestError(f"http_{self.status}", self.text)
        if not (self._reading.complete or self._left):
            num_chunks = self._reading.num_chunks
            raise RequestError("truncated", f"the stream ended after {num_chunks} chunks, without a finish")


class Client:
    """Speaks to one model on one server through one session."""

    def __init__(self, session: Session, model: str, options: RequestOptions) -> None:
        self._session = session
        self._head = session.head("POST", endpoint_url(session.server.url, PATHS[session.server.endpoint]))
        self._writer = BodyWriter(model, session.server.endpoint, options)
        self._continuous = options.continuous_usage

    async def send(self, request: Request, intended: float | None) -> Record:
        """Send now; latencies count from `intended`, or from now where it is None."""
        clock = self._session.clock
        reading = StreamReading(self._continuous)
        content = with_body(self._head, self._writer.write(request))
        sent = clock()
        ending = await self._ending(content, Streamed(reading, request.disconnect_after), reading)
        return _record(request.index, ending, reading, (sent if intended is None else intended, sent, clock()))

    async def _ending(self, content: bytes, answer: Streamed, reading: StreamReading) -> _Ending:
        try:
            await self._session.exchange(content, answer)
            answer.check_end()
        except RequestError as problem:
            return _Ending("error", problem.kind, problem.detail)
        except (OSError, ProtocolError) as problem:
            # After [DONE] the answer is whole, whatever becomes of the connection.
            return _Ending("ok") if reading.done_at is not None else _failure(problem, answer, reading)
        return _Ending("ok") if reading.complete else _Ending("disconnected")


def _failure(problem: Exception, answer: Streamed, reading: StreamReading) -> _Ending:
    if answer.status not in (0, 200):
        return _Ending("error", f"http_{answer.status}", answer.text)
    detail = " ".join(f"{type(problem).__name__} {reason(problem)}".split())[:300]
    if isinstance(problem, TimeoutError):
        return _Ending("error", "timeout", detail)
    if reading.answered:
        return _Ending("error", "truncated", detail)
    return _Ending("error", "connect" if isinstance(problem, OSError) else "malformed", detail)


def _record(index: int, ending: _Ending, reading: StreamReading, times: tuple[float, float, float]) -> Record:
    intended, sent, closed = times
    end = closed if reading.done_at is None else reading.done_at
    usage = reading.usage
    details = usage.prompt_tokens_details if usage is not None else None
    return Record(
        index=index,
        outcome=ending.outcome,
        error_kind=ending.kind,
        error_detail=ending.detail,
        intended=intended,
        sent=sent,
        end=end,
        ttft=None if reading.first is None else reading.first - intended,
        tpot=reading.tpot,
        e2e=end - intended,
        itls=tuple(reading.itls),
        num_chunks=reading.num_chunks,
        prompt_tokens=usage.prompt_tokens if usage is not None else None,
        cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        output_tokens=reading.output_tokens,
        has_usage=usage is not None,
        finish_reason=reading.finish_reason,
    )
