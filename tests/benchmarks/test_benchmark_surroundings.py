"""What benchmarks tell of the machine and of the server beside their own figures."""

import io
from dataclasses import replace
from typing import IO, Any, cast

import pytest

from benchmarks import quiet, serving, throughput
from benchmarks.driving import Comparison, Load, Measured, Peer
from benchmarks.stub_engine import StubCore
from server.metrics import Metrics
from server.records import StepTimings


class Proc:
    """/proc/stat, each time it is read."""

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)

    def __call__(self, path: str) -> "Proc":
        assert path == "/proc/stat"
        return self

    def read_text(self) -> str:
        if (text := next(self._texts, None)) is None:
            raise FileNotFoundError
        return text


def stat(*ticks: int) -> str:
    return f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet.time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("no_waiting")
def test_time_that_is_neither_idle_nor_waiting_for_a_disk_is_busy(monkeypatch: pytest.MonkeyPatch):
    # user nice system idle iowait irq softirq steal guest guest_nice: 100 ticks pass, 60 and 10 of them idle. The
    # guests' 20 are among the user's.
    before, after = stat(100, 5, 10, 1000, 50, 1, 2, 3, 40, 4), stat(120, 6, 12, 1060, 60, 2, 4, 7, 56, 8)
    monkeypatch.setattr(quiet, "Path", Proc(before, after))
    assert quiet.busy_share() == pytest.approx(0.3)


@pytest.mark.usefixtures("no_waiting")
def test_a_system_that_tells_nothing_has_no_share_and_one_whose_time_stands_still_is_idle(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(quiet, "Path", Proc())
    assert quiet.busy_share() is None
    still = stat(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    monkeypatch.setattr(quiet, "Path", Proc(still, still))
    assert quiet.busy_share() == 0.0


@pytest.mark.parametrize(
    ("shares", "last"), [([0.9, 0.5, 0.01, 0.7], 0.01), ([0.9, 0.8, 0.7, 0.01], 0.7), ([None], None)]
)
def test_a_busy_machine_is_waited_for_but_not_for_ever(
    shares: list[float | None], last: float | None, monkeypatch: pytest.MonkeyPatch
):
    told = iter(shares)
    monkeypatch.setattr(quiet, "busy_share", lambda: next(told))
    assert quiet.await_quiet(0.05, tries=3) == last


def answering(monkeypatch: pytest.MonkeyPatch, path: str, body: bytes) -> None:
    def opened(url: str) -> IO[bytes]:
        assert url == f"http://here{path}"
        return io.BytesIO(body)

    monkeypatch.setattr(serving.urllib.request, "urlopen", opened)


def test_seconds_of_forward_are_those_of_the_server_s_own_metric(monkeypatch: pytest.MonkeyPatch):
    metrics = Metrics(["a"])
    stats = replace(StubCore().step().stats, duration_seconds=9.0, schedule_seconds=1.0, forward_seconds=2.5)
    for _ in range(3):
        metrics.on_step("a", stats, StepTimings([], [], [], []))
    answering(monkeypatch, "/metrics", metrics.render())
    assert serving.forward_seconds("http://here") == 7.5


def test_the_context_is_that_of_the_first_model(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, "/v1/models", b'{"data": [{"id": "a", "max_model_len": 256}, {"max_model_len": 9}]}')
    assert serving.context_length("http://here") == 256


class Started:
    """A server process, running or gone."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    def poll(self) -> int | None:
        return self._code


def test_a_server_s_address_is_read_from_its_log_and_a_log_without_one_is_shown():
    log = io.StringIO("12:00:00 info loading\n12:00:01 info ready url=http://127.0.0.1:4711 models=a\n")
    assert serving._ready_url(cast(Any, Started(None)), log) == "http://127.0.0.1:4711"
    with pytest.raises(SystemExit, match=r"no such checkpoint\n+the server did not become ready"):
        serving._ready_url(cast(Any, Started(2)), io.StringIO("no such checkpoint\n"))


LOAD = Load(concurrency=2, prompt_tokens=4, output_tokens=3, num_requests=9, vocab_size=50, seed=1)


def test_what_is_not_forward_is_outside_and_warming_up_is_on_neither_side(monkeypatch: pytest.MonkeyPatch):
    sent: list[Load] = []
    forward = [100.0]

    def measure(url: str, load: Load) -> Measured:
        sent.append(load)
        forward[0] += 3.0
        return Measured(50.0, 1.25, 0.5, duration_seconds=4.0)

    monkeypatch.setattr(throughput, "measure", measure)
    monkeypatch.setattr(throughput, "forward_seconds", lambda url: forward[0])
    assert throughput.line_alone("http://here", LOAD) == ["50", "1.2", "0.50", "25.0 %"]
    assert [load.num_requests for load in sent] == [LOAD.concurrency, LOAD.num_requests]
    assert sent[0].seed != sent[1].seed


def test_a_line_of_two_servers_has_their_medians_and_the_median_of_their_ratios(monkeypatch: pytest.MonkeyPatch):
    def runs(*speeds: float) -> list[Measured]:
        return [Measured(speed, 10 * speed, None, 1.0) for speed in speeds]

    def compared(url: str, peer: Peer, load: Load, num_warmup: int) -> Comparison:
        return Comparison(runs(10, 40, 90), runs(10, 20, 30))

    monkeypatch.setattr(throughput, "compare", compared)
    line = throughput.line_versus("http://here", Peer("http://there", None, 3), LOAD)
    assert line == ["40", "20", "2.00 (1.00 to 3.00)", "400.0", "200.0", "2.00 (1.00 to 3.00)"]
