"""The whole server as a process over a fake engine: start, drain, cuts, crashes and exit codes, seen from outside."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from fake_core import CRASH_TOKEN, expected_tokens
from fake_server import text_of, write_checkpoint
from fastapi import FastAPI

from server.lifetime import build_http_server

FAKE_SERVER = str(Path(__file__).with_name("fake_server.py"))
PATIENCE_SECONDS = 30
FOREVER = 50_000  # tokens
KEY = "sesame"


class Server:
    """A server process and what it has logged."""

    def __init__(self, flags: list[str], behaviour: dict[str, object], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._logged = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, FAKE_SERVER, json.dumps(behaviour), "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first logged line, past or to come, with `pattern` in it."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._logged:
            assert self._logged.wait_for(found, PATIENCE_SECONDS), "".join(self.lines)
        match = found()
        assert match is not None
        return match

    def engine_pids(self) -> list[int]:
        """Of all engines that have become ready so far."""
        return [int(match[1]) for line in self.lines if (match := re.search(r"engine_ready pid=(\d+)", line))]

    def wait_for_engine(self, num_starts: int) -> None:
        with self._logged:
            assert self._logged.wait_for(lambda: len(self.engine_pids()) >= num_starts, PATIENCE_SECONDS)

    def client(self, key: str | None = None) -> httpx.Client:
        url = self.wait_for(r"listening.*(http://[\d.]+:\d+)")[1]
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False)

    def exit_code(self) -> int:
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._logged:
                self.lines.append(line)
                self._logged.notify_all()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "fake")


Start = Callable[..., Server]


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Start]:
    """Starts servers, and ends those a test leaves running."""
    servers: list[Server] = []

    def start_one(*flags: str, **behaviour: object) -> Server:
        server = Server(["--model", str(checkpoint), *flags], behaviour, {})
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.exit_code()


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it: its key from the environment, room for one to wait."""
    flags = ["--model", str(checkpoint), "--max-queue", "1"]
    server = Server(flags, {"step_seconds": 0.003}, {"MINIGPT_API_KEY": KEY})
    server.wait_for(" ready ")
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert KEY not in "".join(server.lines)


def body(prompt: list[int], max_tokens: int, stream: bool = False) -> dict[str, object]:
    return {"model": "fake", "prompt": prompt, "max_tokens": max_tokens, "stream": stream}


def text_in(events: list[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(choice["text"] for chunk in chunks if "choices" in chunk for choice in chunk["choices"])


class Stream:
    """A streamed completion, read event by event."""

    def __init__(self, client: httpx.Client, max_tokens: int, prompt: list[int]) -> None:
        self._context = client.stream("POST", "/v1/completions", json=body(prompt, max_tokens, stream=True))
        self.response = self._context.__enter__()
        self._lines = self.response.iter_lines()
        self.events: list[str] = []

    def next(self) -> None:
        for line in self._lines:
            if line.startswith("data: "):
                self.events.append(line.removeprefix("data: "))
                return

    def rest(self) -> list[str]:
        """All events, the ones read before included."""
        self.events += [line.removeprefix("data: ") for line in self._lines if line.startswith("data: ")]
        self._context.__exit__(None, None, None)
        return self.events


def test_it_is_live_at_once_and_ready_once_the_engine_is(start: Start) -> None:
    server = start(load_seconds=0.5)
    with server.client() as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        refused = client.post("/v1/completions", json=body([5], 4))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        ready = server.wait_for(r"ready url=http://127.0.0.1:\d+ models=fake seconds=([\d.]+)")
        assert float(ready[1]) >= 0.5
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/v1/completions", json=body([5], 40)).json()
        assert answer["choices"][0]["text"] == text_of(expected_tokens([5], 40))


def test_sigterm_lets_open_streams_finish_refuses_new_work_and_exits_with_0(start: Start) -> None:
    server = start("--log-format", "json", "--api-key", KEY, step_seconds=0.003)
    server.wait_for('"event": "ready"')
    with server.client(KEY) as client:
        stream = Stream(client, 300, [7])
        stream.next()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for('"event": "draining", "signal": "SIGTERM", "open_requests": 1')
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        refused = client.post("/v1/completions", json=body([5], 4))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        events = stream.rest()
    assert events[-1] == "[DONE]"
    assert text_in(events) == text_of(expected_tokens([7], 300))
    assert server.exit_code() == 0
    logged = [json.loads(line)["event"] for line in server.lines]
    assert logged == ["listening", "engine_ready", "ready", "draining", "drained"]
    assert KEY not in "".join(server.lines)


def test_when_the_drain_takes_too_long_streams_are_cut_with_an_error_and_the_exit_code_is_still_0(start: Start) -> None:
    server = start("--drain-seconds", "0.2", step_seconds=0.003)
    server.wait_for(" ready ")
    with server.client() as client:
        stream = Stream(client, FOREVER, [7])
        stream.next()
        server.process.send_signal(signal.SIGTERM)
        events = stream.rest()
    assert "shutting down" in json.loads(events[-1])["error"]["message"]
    assert server.exit_code() == 0
    assert any("drain_cut open_requests=1" in line for line in server.lines)


def test_a_second_ctrl_c_cuts_at_once(start: Start) -> None:
    server = start("--drain-seconds", "3000", step_seconds=0.003)
    server.wait_for(" ready ")
    with server.client() as client:
        stream = Stream(client, FOREVER, [7])
        stream.next()
        server.process.send_signal(signal.SIGINT)
        server.wait_for("draining signal=SIGINT")
        server.process.send_signal(signal.SIGINT)
        events = stream.rest()
    assert json.loads(events[-1])["error"] == {
        "message": "the server is shutting down",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert server.exit_code() == 1
    assert not any("Traceback" in line or " ERROR " in line for line in server.lines)


@pytest.mark.parametrize(("error", "is_shown"), [(asyncio.CancelledError(), False), (ValueError("no"), True)])
def test_only_the_traceback_of_a_request_that_is_cut_is_kept_out_of_the_log(
    error: BaseException, is_shown: bool
) -> None:
    build_http_server(FastAPI(), access_log=False)
    record = logging.makeLogRecord({"name": "uvicorn.error", "exc_info": (type(error), error, None)})
    assert bool(logging.getLogger("uvicorn.error").filter(record)) is is_shown


def test_sigterm_while_loading_exits_with_0(start: Start) -> None:
    server = start(load_seconds=0.3)
    server.wait_for("listening")
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0


def values(client: httpx.Client) -> dict[str, float]:
    """Every series of the server's own metrics, by its name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("minigpt"))}


def test_an_engine_that_is_killed_ends_streams_with_an_error_and_comes_back(shared: Server) -> None:
    num_starts, pid = len(shared.engine_pids()), shared.engine_pids()[-1]
    with shared.client(KEY) as client:
        before = values(client)
        stream = Stream(client, FOREVER, [7])
        stream.next()
        os.kill(pid, signal.SIGKILL)
        events = stream.rest()
        assert "error" in json.loads(events[-1])
        assert "[DONE]" not in events
        shared.wait_for("engine_died exit_code=-9")
        shared.wait_for_engine(num_starts + 1)
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/v1/completions", json=body([5], 40)).json()
        assert answer["choices"][0]["text"] == text_of(expected_tokens([5], 40))
        after = values(client)
    for series, difference in (
        ('minigpt_requests_finished_total{model="fake",outcome="error"}', 1),
        ('minigpt_requests_finished_total{model="fake",outcome="length"}', 1),
        ('minigpt_requests_in_flight{model="fake"}', 0),
        ("minigpt_engine_starts_total", 1),
        ("minigpt_engine_exits_total", 1),
    ):
        assert after[series] - before[series] == difference, series


def test_a_request_that_crashes_the_engine_gets_an_error_and_nobody_after_it_does(shared: Server) -> None:
    num_starts = len(shared.engine_pids())
    with shared.client(KEY) as client:
        crashed = client.post("/v1/completions", json=body([CRASH_TOKEN], 4))
        assert crashed.status_code == 500
        shared.wait_for("the magic token crashed the core")
        shared.wait_for_engine(num_starts + 1)
        assert client.post("/v1/completions", json=body([5], 4)).status_code == 200


def test_a_client_that_leaves_ends_its_request(shared: Server) -> None:
    aborted, in_flight = 'minigpt_requests_finished_total{model="fake",outcome="abort"}', "minigpt_sequences_in_flight"
    with shared.client(KEY) as client:
        before = values(client)
        with shared.client(KEY) as leaving:
            stream = Stream(leaving, FOREVER, [7])
            stream.next()
            stream.response.close()
        while (after := values(client))[aborted] == before[aborted]:
            pass
    assert after[in_flight + '{model="fake"}'] == 0


def test_a_full_queue_is_a_503_with_retry_after_and_is_counted(shared: Server) -> None:
    rejected = 'minigpt_requests_rejected_total{model="fake",reason="queue_full"}'
    with shared.client(KEY) as client:
        before = values(client)
        streams = []
        for n in range(8):  # all the fake core runs at once
            streams.append(Stream(client, FOREVER, [n]))
            streams[-1].next()
        waiting = threading.Thread(target=lambda: client.post("/v1/completions", json=body([9], 1)))
        waiting.start()
        while values(client)['minigpt_sequences_in_flight{model="fake"}'] < 9:
            pass
        refused = client.post("/v1/completions", json=body([5], 4))
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert values(client)[rejected] == before[rejected] + 1
        for stream in streams:
            stream.response.close()
        waiting.join(PATIENCE_SECONDS)


def test_a_key_in_the_environment_is_asked_for(shared: Server) -> None:
    with shared.client() as client:
        assert client.post("/v1/completions", json=body([5], 4)).status_code == 401


def test_the_books_balance_at_every_scrape(shared: Server) -> None:
    with shared.client(KEY) as client:
        threads = [
            threading.Thread(target=lambda n=n: client.post("/v1/completions", json=body([n], 40))) for n in range(6)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now = values(client)
            for unit in ("requests", "sequences"):
                finished = [value for name, value in now.items() if name.startswith(f"minigpt_{unit}_finished_total")]
                assert now[f'minigpt_{unit}_started_total{{model="fake"}}'] == (
                    sum(finished) + now[f'minigpt_{unit}_in_flight{{model="fake"}}']
                )


def test_an_open_address_without_a_key_is_warned_about(start: Start) -> None:
    start("--host", "0.0.0.0").wait_for("WARNING server open_to_everyone host=0.0.0.0")


def test_what_the_engine_cannot_load_is_one_line_and_exit_code_2(start: Start) -> None:
    server = start("--log-level", "error", load="fatal")
    assert server.exit_code() == 2
    assert server.lines == ["minigpt-serve: --model a=/nowhere: has no weights\n"]


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(shared: Server, start: Start) -> None:
    port = shared.wait_for(r"listening url=\S+:(\d+)")[1]
    second = start("--port", port)
    assert second.exit_code() == 2
    assert len(second.lines) == 1
    assert f"--port {port}: cannot be listened on" in second.lines[0]
