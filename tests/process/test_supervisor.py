"""Real engine processes with fake cores: killed, crashing, hanging, and started again."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from fake_core import CRASH_TOKEN, expected_tokens, outputs_of, request
from recorder import Recorder

from server.admission import QueueLimits
from server.engine.config import EngineConfig
from server.engine.types import SequenceOutput
from server.engine_client import EngineClient
from server.errors import CannotStart, EngineFailed, EngineGivenUp
from server.generation import Generation
from server.protocol import Configure, ModelSource, Refused, StepReport
from server.supervisor import RestartPolicy, Supervisor, start_children

FAKE_CHILD = str(Path(__file__).with_name("fake_child.py"))
CONFIGURE = Configure((ModelSource("a", "/nowhere"),), EngineConfig())
AT_ONCE = RestartPolicy(first_delay_seconds=0.01, max_delay_seconds=0.02, max_deaths=3)


class Bench:
    """A supervised client."""

    def __init__(self, policy: RestartPolicy, behaviour: dict[str, object], exit_seconds: float = 5.0) -> None:
        self.recorder = Recorder()
        self.client = EngineClient(["a"], QueueLimits(64, 128), [self.recorder])
        command = [sys.executable, FAKE_CHILD, json.dumps(behaviour)]
        self.supervisor = Supervisor(start_children(command), CONFIGURE, self.client, policy, exit_seconds)

    def open(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Generation:
        return self.client.open("a", [request(prompt, max_tokens, n) for n, prompt in enumerate(prompts)])

    async def ready(self, num_starts: int) -> None:
        """Poll until an engine has become ready for the given time."""
        while self.recorder.engine.count("ready") < num_starts:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bench(policy: RestartPolicy = AT_ONCE, **behaviour: object) -> AsyncIterator[Bench]:
    made = Bench(policy, behaviour)
    running = asyncio.create_task(made.supervisor.run())
    try:
        await made.ready(1)
        yield made
    finally:
        made.supervisor.stop()
        await running


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 30)

    # The server's own kind of loop: its transports differ from asyncio's in ways that matter here.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def tokens_of(generation: Generation) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in generation.sequences]
    async for item in generation:
        for index, output in item:
            tokens[index].extend(output.tokens)
    generation.close()
    return tokens


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_tokens_cross_the_processes_unchanged() -> None:
    async def test() -> None:
        async with bench() as made:
            prompts = [[n, n * n] for n in range(20)]
            generations = [made.open([prompt, [*prompt, 1]], 60) for prompt in prompts]
            answers = await asyncio.gather(*map(tokens_of, generations))
            assert answers == [[expected_tokens(prompt, 60), expected_tokens([*prompt, 1], 60)] for prompt in prompts]
            assert made.recorder.outcomes() == {"length": 40}

    run(test)


def test_a_killed_engine_ends_open_requests_is_restarted_and_serves_again(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with bench(step_seconds=0.002) as made:
            generations = [made.open([[n]], 10**6) for n in range(5)]
            for generation in generations:
                assert await anext(generation)
            pid = made.supervisor.engine_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            for generation in generations:
                with pytest.raises(EngineFailed):
                    await tokens_of(generation)
                generation.close()
            assert not made.client.is_ready()
            assert made.recorder.engine == ["ready", "lost"]
            await made.ready(2)
            assert made.client.is_ready()
            assert made.supervisor.engine_pid != pid
            assert await tokens_of(made.open([[5]], 30)) == [expected_tokens([5], 30)]
            assert made.recorder.outcomes() == {"error": 5, "length": 1}

    run(test)
    assert "engine_died exit_code=-9" in caplog.text


def test_a_step_that_raises_is_a_death_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with bench() as made:
            with pytest.raises(EngineFailed):
                await tokens_of(made.open([[CRASH_TOKEN]], 5))
            await made.ready(2)
            assert await tokens_of(made.open([[5]], 5)) == [expected_tokens([5], 5)]

    run(test)
    assert "engine_died exit_code=1" in caplog.text


def test_an_engine_that_talks_nonsense_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        made = Bench(AT_ONCE, {"load": "garbage"})
        with pytest.raises(EngineGivenUp):
            await made.supervisor.run()

    run(test)
    assert "engine_protocol_error" in caplog.text


def test_a_crash_loop_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        made = Bench(AT_ONCE, {"load": "crash"})
        with pytest.raises(EngineGivenUp, match="died 4 times in a row, the last with exit code 1"):
            await made.supervisor.run()
        assert not made.client.is_ready()

    run(test)
    assert caplog.text.count("engine_died") == 3


def test_deaths_far_apart_do_not_add_up() -> None:
    async def test() -> None:
        forgiving = RestartPolicy(first_delay_seconds=0.01, max_deaths=1, healthy_after_seconds=0.0)
        async with bench(forgiving) as made:
            for num_starts in (2, 3, 4):
                with pytest.raises(EngineFailed):
                    await tokens_of(made.open([[CRASH_TOKEN]], 5))
                await made.ready(num_starts)

    run(test)


def test_what_cannot_be_loaded_is_not_tried_again() -> None:
    async def test() -> None:
        made = Bench(AT_ONCE, {"load": "fatal"})
        with pytest.raises(CannotStart, match="--model a=/nowhere: has no weights"):
            await made.supervisor.run()

    run(test)


def test_the_delay_doubles_up_to_its_bound() -> None:
    policy = RestartPolicy(first_delay_seconds=0.5, max_delay_seconds=3.0)
    assert [policy.delay_seconds(n) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_stopping_ends_the_process_and_open_requests_and_is_no_death(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with bench(step_seconds=0.001) as made:
            generation = made.open([[1]], 10**6)
            await anext(generation)
            pid = made.supervisor.engine_pid
            assert pid is not None
        assert not is_alive(pid)
        with pytest.raises(EngineFailed, match="shutting down"):
            await tokens_of(generation)

    run(test)
    assert "engine_died" not in caplog.text


def test_stopping_does_not_wait_for_an_engine_that_is_still_loading(tmp_path: Path) -> None:
    async def test() -> None:
        loading = tmp_path / "loading"
        made = Bench(AT_ONCE, {"load_seconds": 3600, "loading_file": str(loading)}, exit_seconds=3600)
        running = asyncio.create_task(made.supervisor.run())
        while not loading.exists():
            await asyncio.sleep(0.005)
        made.supervisor.stop()
        await running
        assert "ready" not in made.recorder.engine

    run(test)


def test_an_engine_that_hangs_in_a_step_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        hanging = tmp_path / "hanging"
        made = Bench(AT_ONCE, {"hang_file": str(hanging)}, exit_seconds=0.05)
        running = asyncio.create_task(made.supervisor.run())
        await made.ready(1)
        pid = made.supervisor.engine_pid
        assert pid is not None
        made.open([[1]], 5)
        while not hanging.exists():
            await asyncio.sleep(0.005)
        made.supervisor.stop()
        await running
        assert not is_alive(pid)

    run(test)


def test_the_engine_ignores_the_signals_meant_for_the_server() -> None:
    async def test() -> None:
        async with bench(step_seconds=0.001) as made:
            generation = made.open([[3]], 300)
            await anext(generation)
            pid = made.supervisor.engine_pid
            assert pid is not None
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            await tokens_of(generation)
            assert made.recorder.outcomes() == {"length": 1}

    run(test)


def test_a_client_that_leaves_frees_its_place_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with bench(step_seconds=0.002) as made:
            reports: list[StepReport] = []
            receive = made.client.receive

            def noted_receive(message: StepReport | Refused) -> None:
                assert isinstance(message, StepReport)
                reports.append(message)
                receive(message)

            monkeypatch.setattr(made.client, "receive", noted_receive)
            generations = [made.open([[n]], 10**6) for n in range(8)]  # all the fake core runs at once
            for generation in generations:
                await anext(generation)
            waiting = made.open([[9]], 10**6)
            generations[0].close()
            assert await anext(waiting)
            # The step that reports the abort is the one that gave the place to the next.
            (freed,) = [report for report in reports if SequenceOutput(0, finish_reason="abort") in report.step.outputs]
            assert 8 in [output.id for output in outputs_of(freed)]
            for generation in (*generations, waiting):
                generation.close()

    run(test)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
