"""The client and the loops against a real server on loopback."""

import asyncio
import socket
import time

import pytest
from fake_openai import Behaviour, FakeOpenAI

from loadtest.client import Client
from loadtest.config import RequestOptions, ServerOptions
from loadtest.loops import closed_loop, open_loop
from loadtest.record import Record, RequestError
from loadtest.schedule import poisson_arrivals
from loadtest.served import list_models
from loadtest.session import Session
from loadtest.workload import Workload


class Unwatched:
    def started(self) -> None:
        pass

    def finished(self, record: Record) -> None:
        pass


def run_loop(server, options, loop):
    """Records of `loop(client, workload)` against `server`."""

    async def go():
        async with Session(server) as session:
            return await loop(Client(session, "tiny", options), Workload(options))

    return asyncio.run(go())


def send_one(server, options=None):
    async def loop(client, workload):
        return await client.send(workload.request(0), None)

    return run_loop(server, options or RequestOptions(output_length="fixed:6"), loop)


def closed(concurrency, num_requests):
    async def loop(client, workload):
        requests = (workload.request(index) for index in range(num_requests))
        return await closed_loop(client.send, requests, concurrency, lambda: True, Unwatched())

    return loop


def opened(arrivals):
    async def loop(client, workload):
        requests = [workload.request(index) for index in range(len(arrivals))]
        return await open_loop(client.send, requests, arrivals, time.perf_counter, Unwatched())

    return loop


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("write_bytes", [None, 7])
def test_an_answer_is_read_whole_however_it_was_written(fake: FakeOpenAI, endpoint, newline, write_bytes):
    fake.behave = lambda number, body: Behaviour(newline=newline, write_bytes=write_bytes)
    record = send_one(ServerOptions(url=fake.url, endpoint=endpoint))
    assert (record.outcome, record.output_tokens, record.num_chunks) == ("ok", 6, 6)
    assert (record.prompt_tokens, record.cached_tokens, record.finish_reason) == (10, 4, "length")
    assert len(record.itls) == 5
    assert record.ttft is not None
    assert 0 < record.ttft <= record.e2e


def test_a_stream_may_close_without_done_once_it_has_finished(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(ending="no_done", usage=False)
    record = send_one(ServerOptions(url=fake.url))
    assert (record.outcome, record.output_tokens, record.has_usage) == ("ok", 6, False)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (Behaviour(status=400), "http_400"),
        (Behaviour(status=503), "http_503"),
        (Behaviour(content_type="application/json"), "malformed"),
        (Behaviour(ending="garbage"), "malformed"),
        (Behaviour(ending="error_event"), "stream_error"),
        (Behaviour(ending="no_finish"), "truncated"),
        (Behaviour(ending="drop"), "truncated"),
        (Behaviour(ending="hang"), "timeout"),
    ],
)
def test_every_failure_is_an_error_of_its_kind(fake: FakeOpenAI, shape, kind):
    fake.behave = lambda number, body: shape
    record = send_one(ServerOptions(url=fake.url, timeout_seconds=0.1 if kind == "timeout" else 10.0))
    assert (record.outcome, record.error_kind) == ("error", kind)
    assert record.error_detail


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there_is_a_connect_error():
    record = send_one(ServerOptions(url=f"http://127.0.0.1:{free_port()}"))
    assert (record.outcome, record.error_kind) == ("error", "connect")


def test_a_server_that_is_not_there_has_no_models():
    server = ServerOptions(url=f"http://127.0.0.1:{free_port()}")

    async def go():
        async with Session(server) as session:
            await list_models(session)

    with pytest.raises(RequestError, match="connect"):
        asyncio.run(go())


def test_leaving_early_is_disconnected_and_not_an_error(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(ending="hang")
    options = RequestOptions(output_length="fixed:6", disconnect_fraction=1.0)
    records = run_loop(ServerOptions(url=fake.url), options, closed(4, 12))
    assert {record.outcome for record in records} == {"disconnected"}
    assert {record.num_chunks for record in records} <= set(range(7))


def test_the_key_and_the_standard_fields_are_sent(fake: FakeOpenAI):
    send_one(ServerOptions(url=fake.url, api_key="secret"))
    assert fake.headers[0]["Authorization"] == "Bearer secret"
    assert sorted(fake.bodies[0]) == sorted(
        ["model", "prompt", "max_tokens", "seed", "temperature", "stream", "stream_options"]
    )


def test_continuous_usage_divides_gaps_among_tokens(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(tokens_per_chunk=3, continuous_usage=True, delay_seconds=0.002)
    record = send_one(ServerOptions(url=fake.url), RequestOptions(output_length="fixed:9", continuous_usage=True))
    assert fake.bodies[0]["stream_options"]["continuous_usage_stats"] is True
    assert (record.num_chunks, len(record.itls), record.output_tokens) == (3, 6, 9)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_closed_loop_never_exceeds_its_concurrency_and_reaches_it(fake: FakeOpenAI, concurrency):
    fake.behave = lambda number, body: Behaviour(delay_seconds=0.001)
    options = RequestOptions(output_length="fixed:4")
    records = run_loop(ServerOptions(url=fake.url), options, closed(concurrency, 24))
    assert sorted(record.index for record in records) == list(range(24))
    assert fake.peak == concurrency


def stall_on(number_to_stall):
    return lambda number, body: Behaviour(stall_seconds=0.08 if number == number_to_stall else 0.0)


def test_a_stall_shows_in_every_request_due_during_it(fake: FakeOpenAI):
    """The coordinated omission test: a closed loop sees the stall once, an open loop in all who had to wait."""
    server, options = ServerOptions(url=fake.url), RequestOptions(output_length="fixed:1")
    fake.behave = stall_on(5)
    patient = run_loop(server, options, closed(1, 30))
    fake.bodies.clear()
    arrivals = [number * 0.005 for number in range(30)]
    steady = run_loop(server, options, opened(arrivals))
    # One by design; a second is left for a busy machine's own stall.
    assert 1 <= sum(record.e2e > 0.04 for record in patient) <= 2
    assert sum(record.e2e > 0.04 for record in steady) >= 6
    assert sum(record.ttft is not None and record.ttft > 0.04 for record in steady) >= 6


def test_a_stalled_load_generator_cannot_hide_the_wait(fake: FakeOpenAI):
    server, options = ServerOptions(url=fake.url), RequestOptions(output_length="fixed:1")
    stalled: list[int] = []

    async def loop(client, workload):
        async def send(request, intended):
            if request.index == 2:
                stalled.append(request.index)
                time.sleep(0.03)
            return await client.send(request, intended)

        requests = [workload.request(index) for index in range(12)]
        arrivals = [number * 0.002 for number in range(12)]
        return await open_loop(send, requests, arrivals, time.perf_counter, Unwatched())

    records = run_loop(server, options, loop)
    late = [record for record in records if record.sent - record.intended > 0.01]
    assert stalled == [2]
    assert len(late) >= 5
    assert all(record.e2e == record.end - record.intended > record.end - record.sent for record in late)
    assert all(record.ttft is not None and record.ttft > record.sent - record.intended for record in late)


def test_an_open_loop_sends_on_its_schedule_without_waiting_for_answers(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(ending="hang")
    arrivals = poisson_arrivals(500, 20, None, (0,))
    records = run_loop(ServerOptions(url=fake.url, timeout_seconds=0.3), RequestOptions(), opened(arrivals))
    assert fake.peak == 20
    starts = sorted(record.intended for record in records)
    assert [start - starts[0] for start in starts] == pytest.approx([time - arrivals[0] for time in arrivals])
    assert all(record.sent >= record.intended for record in records)


def test_a_closed_loop_stops_sending_when_told_to(fake: FakeOpenAI):
    answers = iter([True] * 5 + [False] * 9)

    async def loop(client, workload):
        requests = (workload.request(index) for index in range(100))
        return await closed_loop(client.send, requests, 2, lambda: next(answers), Unwatched())

    assert len(run_loop(ServerOptions(url=fake.url), RequestOptions(output_length="fixed:2"), loop)) == 5
