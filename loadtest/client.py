"""Sends one request and follows its stream. Every way it can end becomes a Record; nothing is raised or lost."""

from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from loadtest.config import RequestOptions, ServerOptions
from loadtest.payload import PATHS, BodyWriter, endpoint_url, headers
from loadtest.record import Outcome, Record, RequestError, reason
from loadtest.sse import SSEParser
from loadtest.stream import StreamReading
from loadtest.workload import Request

Clock = Callable[[], float]
CONNECT_SECONDS = 30.0
ERROR_BYTES = 2000


@dataclass(frozen=True)
class _Ending:
    outcome: Outcome
    kind: str | None = None
    detail: str | None = None


class Client:
    """Speaks to one model on one server through one session."""

    def __init__(
        self, session: aiohttp.ClientSession, server: ServerOptions, model: str, options: RequestOptions, clock: Clock
    ) -> None:
        self._session = session
        self._url = endpoint_url(server.url, PATHS[server.endpoint])
        self._writer = BodyWriter(model, server.endpoint, options)
        self._continuous = options.continuous_usage
        self._clock = clock

    async def send(self, request: Request, intended: float | None) -> Record:
        """Send now; latencies count from `intended`, or from now where it is None."""
        reading = StreamReading(self._continuous)
        body = self._writer.write(request)
        sent = self._clock()
        ending = await self._ending(request, body, reading)
        return _record(request.index, ending, reading, (sent if intended is None else intended, sent, self._clock()))

    async def _ending(self, request: Request, body: bytes, reading: StreamReading) -> _Ending:
        try:
            await self._follow(request, body, reading)
        except RequestError as problem:
            return _Ending("error", problem.kind, problem.detail)
        except (TimeoutError, aiohttp.ClientError, OSError) as problem:
            # After [DONE] the answer is whole, whatever becomes of the connection.
            return _Ending("ok") if reading.done_at is not None else _failure(problem, reading)
        return _Ending("ok") if reading.complete else _Ending("disconnected")

    async def _follow(self, request: Request, body: bytes, reading: StreamReading) -> None:
        """Read to the end. Returns early, with the reading incomplete, only where the request is to leave."""
        async with self._session.post(self._url, data=body) as response:
            await _check_head(response)
            reading.answered = True
            parser = SSEParser()
            leave_after = request.disconnect_after
            if leave_after == 0:
                response.close()
                return
            async for read in response.content.iter_any():
                now = self._clock()
                for payload in parser.feed(read):
                    reading.observe(payload, now)
                if leave_after is not None and reading.num_chunks >= leave_after and not reading.complete:
                    response.close()
                    return
        if not reading.complete:
            raise RequestError("truncated", f"the stream ended after {reading.num_chunks} chunks, without a finish")


def open_session(server: ServerOptions) -> aiohttp.ClientSession:
    """A session without a limit on connections: a queue in the client would pass for latency of the server."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=server.fresh_connections),
        timeout=aiohttp.ClientTimeout(total=server.timeout_seconds, sock_connect=CONNECT_SECONDS),
        headers=headers(server),
    )


async def _check_head(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = (await response.content.read(ERROR_BYTES)).decode(errors="replace")
        raise RequestError(f"http_{response.status}", text)
    if response.content_type != "text/event-stream":
        raise RequestError("malformed", f"content type {response.content_type}, expected text/event-stream")


def _failure(problem: Exception, reading: StreamReading) -> _Ending:
    detail = " ".join(f"{type(problem).__name__} {reason(problem)}".split())[:300]
    if isinstance(problem, TimeoutError):
        return _Ending("error", "timeout", detail)
    if reading.answered:
        return _Ending("error", "truncated", detail)
    is_connection = isinstance(problem, aiohttp.ClientConnectionError | OSError)
    return _Ending("error", "connect" if is_connection else "malformed", detail)


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
