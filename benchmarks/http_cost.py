"""Processor time of the HTTP process per streamed token: seconds per thousand tokens, as JSON.

python -m benchmarks.http_cost [--streams 64] [--tokens 128] [--steps-per-second 100] [--chat] [--real-engine]

The real server with a stub in the engine's place, which makes a token for every stream at a fixed pace; this process
reads the streams and is not counted. "http process" is all of it, requests included; "tokens alone" is what is left
when the cost of requests of one token is taken off; "serialising" is what a step costs the engine process to send.
With --real-engine the checkpoint is served, and "engine process" is the engine's own processor time.

Uses only what every version of the server has, so that `benchmarks.against` can run it in an older tree.
"""

import argparse
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.stub_engine import StubCore
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest
from server.protocol import StepReport, encode

ROOT = Path(__file__).resolve().parents[1]
STREAM_END = b"\r\n0\r\n\r\n"  # of a chunked body; no JSON has a bare line break
PROMPT_TOKENS = 48
START_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What every stream asks for, over and over."""

    model: str
    streams: int
    rounds: int
    is_chat: bool

    def request(self, num_tokens: int) -> bytes:
        """One streamed request as bytes."""
        common: dict[str, object] = {"model": self.model, "stream": True, "max_tokens": num_tokens, "seed": 1}
        text: dict[str, object] = {"prompt": [64 + place for place in range(PROMPT_TOKENS)]}
        if self.is_chat:
            text = {"messages": [{"role": "user", "content": "Who is there? Answer me, stand and unfold yourself."}]}
        body = json.dumps({**text, **common, "ignore_eos": True}).encode()
        path = "chat/completions" if self.is_chat else "completions"
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Server:
    """A running server and its engine."""

    port: int
    http_pid: int
    engine_pid: int


class Stream:
    """One connection that sends its request `rounds` times."""

    def __init__(self, port: int, request: bytes, rounds: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.num_events = 0
        self._request = request
        self._left = rounds
        self._tail = b""
        self._ask()

    def read(self) -> bool:
        """Take in what has come; false once the last answer is over."""
        data = self.socket.recv(2**18)
        assert data, "the server closed the connection"
        self.num_events += data.count(b"data: {")
        self._tail = (self._tail + data)[-len(STREAM_END) :]
        if self._tail != STREAM_END:
            return True
        if self._left == 0:
            self.socket.close()
            return False
        self._ask()
        return True

    def _ask(self) -> None:
        self._left -= 1
        self._tail = b""
        self.socket.sendall(self._request)


@contextlib.contextmanager
def serve(checkpoint: Path, steps_per_second: float, real_engine: bool) -> Iterator[Server]:
    """A server with the stub for an engine, or with its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = ["server"] if real_engine else ["benchmarks.stub_engine", str(steps_per_second)]
    flags = ["--model", str(checkpoint), "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen([sys.executable, "-m", *module, *flags], cwd=ROOT)
    try:
        _wait_until_ready(port, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield Server(port, process.pid, int(children.split()[0]))
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(10 * START_SECONDS):
        with contextlib.suppress(OSError):  # refused, or a 503
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process so far, as the kernel's scheduler counts it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def drive(port: int, load: Load, num_tokens: int) -> int:
    """Run all streams to their ends; the number of events that came."""
    streams = [Stream(port, load.request(num_tokens), load.rounds) for _ in range(load.streams)]
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        num_open = len(streams)
        while num_open:
            for key, _ in selector.select():
                if not key.data.read():
                    selector.unregister(key.fileobj)
                    num_open -= 1
    return sum(stream.num_events for stream in streams)


def measure(server: Server, load: Load, num_tokens: int) -> dict[str, float]:
    """Seconds per thousand tokens of both processes."""
    http, engine = cpu_seconds(server.http_pid), cpu_seconds(server.engine_pid)
    num_events = drive(server.port, load, num_tokens)
    total = load.streams * load.rounds * num_tokens
    print(f"{total} tokens in {num_events} events", file=sys.stderr)
    return {
        "http process": (cpu_seconds(server.http_pid) - http) / total * 1000,
        "engine process": (cpu_seconds(server.engine_pid) - engine) / total * 1000,
    }


def serialising_seconds(streams: int, repeats: int = 200) -> float:
    """Per thousand tokens: one step's report to bytes, in this process; the least of several runs."""
    core = StubCore()
    for id_ in range(10_000, 10_000 + streams):
        core.add(SequenceRequest(id_, (1,), SamplingParams(max_tokens=9)))
    step = core.step()
    make_report = getattr(StepReport, "of", StepReport)  # a tree before columns has no `of`
    seconds = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(repeats):
            encode(make_report(0, step))
        seconds.append((time.process_time() - started) / repeats / streams * 1000)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "checkpoints" / "shakespeare-gqa")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps-per-second", type=float, default=100.0)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--real-engine", action="store_true")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    load = Load(arguments.checkpoint.name, arguments.streams, arguments.rounds, arguments.chat)
    with serve(arguments.checkpoint, arguments.steps_per_second, arguments.real_engine) as server:
        drive(server.port, replace(load, rounds=1), 4)  # warm-up
        request = measure(server, load, 1)["http process"]
        measured = measure(server, load, arguments.tokens)
    alone = (measured["http process"] * arguments.tokens - request) / (arguments.tokens - 1)
    if not arguments.real_engine:
        del measured["engine process"]  # mostly the stub's own
    kinds = {**measured, "tokens alone": alone, "serialising": serialising_seconds(arguments.streams)}
    for kind, seconds in kinds.items():
        print(f"{kind}: {1000 * seconds:.1f} us a token", file=sys.stderr)
    print(f"a request: {request:.3f} ms", file=sys.stderr)
    print(json.dumps(kinds))


if __name__ == "__main__":
    main()
