"""The asyncio side, fed by hand: routing, ends of every kind, admission, and books that always balance."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import takewhile

import pytest
from fake_core import INFO, FakeCore, expected_tokens, request
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import Clock, Recorder

from server import engine_client
from server.admission import QueueLimits
from server.engine.types import FinishReason, SequenceOutput, StepOutput
from server.engine_client import EngineClient
from server.errors import BadRequest, Draining, EngineFailed, EngineUnavailable, FrameTooLarge, QueueFull
from server.generation import Generation
from server.protocol import Commands, Refused, StepReport, encode
from server.records import TokenGap

LIMITS = QueueLimits(max_waiting=16, max_open=24)
STATS = FakeCore().step().stats


class Bench:
    """A client with two models, and the hand that plays the engine."""

    def __init__(self, limits: QueueLimits = LIMITS) -> None:
        self.recorder = Recorder()
        self.clock = Clock()
        self.sent: list[Commands] = []
        self.client = EngineClient(["a", "b"], limits, [self.recorder], self.clock)

    def connect(self) -> "Bench":
        self.client.connect([INFO, INFO], self.sent.append)
        return self

    def open(self, num_sequences: int = 1, model: str = "a") -> Generation:
        return self.client.open(model, [request([1, n], 8, id_=n) for n in range(num_sequences)])

    def step(self, *outputs: SequenceOutput, model: int = 0) -> None:
        self.client.receive(StepReport(model, StepOutput(outputs, STATS)))


def output(id_: int, *tokens: int, finish: FinishReason | None = None, scheduled_at: float = 1000.0) -> SequenceOutput:
    return SequenceOutput(id_, tokens, finish_reason=finish, scheduled_at=scheduled_at)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(bounded())


async def read(generation: Generation) -> list[Sequence[SequenceOutput]]:
    return [[replace(output, id=index) for index, output in item] async for item in generation]


def test_outputs_reach_their_generation_under_its_own_numbers() -> None:
    async def test() -> None:
        bench = Bench().connect()
        first, second = bench.open(2), bench.open(1, "b")
        await asyncio.sleep(0)
        bench.step(output(0, 5), output(1, 6, finish="stop"))
        bench.step(output(2, 9, finish="length"), model=1)
        bench.step(output(0, 7, finish="length"))
        # Three steps, but the reader was away: what piled up comes as one item, in order.
        assert await read(first) == [[output(0, 5), output(1, 6, finish="stop"), output(0, 7, finish="length")]]
        assert await read(second) == [[output(0, 9, finish="length")]]
        assert bench.recorder.outcomes() == {"stop": 1, "length": 2}
        assert [(record.model, record.outcome) for record in bench.recorder.requests] == [
            ("b", "length"),
            ("a", "length"),
        ]

    run(test)


def test_a_waiting_reader_gets_one_item_per_step() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(2)
        reader = asyncio.create_task(read(generation))
        await asyncio.sleep(0)
        for n in range(4):
            bench.step(output(0, n), output(1, n, n))
            await asyncio.sleep(0)
        bench.step(output(0, finish="stop"), output(1, finish="stop"))
        items = await reader
        assert items[:4] == [[output(0, n), output(1, n, n)] for n in range(4)]
        assert len(items) == 5

    run(test)


def test_commands_of_one_turn_of_the_loop_travel_together() -> None:
    async def test() -> None:
        bench = Bench().connect()
        first, second = bench.open(2), bench.open(1, "b")
        first.stop(0)
        second.close()
        assert bench.sent == []
        await asyncio.sleep(0)
        (commands,) = bench.sent
        assert [(addition.model, addition.sequence.id) for addition in commands.add] == [(0, 0), (0, 1), (1, 2)]
        assert commands.abort == (0, 2)
        await asyncio.sleep(0)
        assert len(bench.sent) == 1

    run(test)


def test_enormous_prompts_are_spread_over_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(engine_client, "MAX_TOKENS_PER_MESSAGE", 100)
        bench = Bench().connect()
        lengths = [30, 30, 30, 30, 250, 10, 90, 1]
        bench.client.open("a", [request([1] * length, 1, id_=n) for n, length in enumerate(lengths)]).stop(3)
        await asyncio.sleep(0)
        sent = [[len(addition.sequence.prompt) for addition in commands.add] for commands in bench.sent]
        assert sent == [[30, 30, 30], [30], [250], [10, 90], [1]]
        assert [commands.abort for commands in bench.sent] == [(), (), (), (), (3,)]

    run(test)


class NarrowBench(Bench):
    """Its wire takes messages of at most so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def connect(self) -> Bench:
        self.client.connect([INFO, INFO], self.send)
        return self

    def send(self, commands: Commands) -> None:
        size = len(encode(commands))
        if size > self.max_bytes:
            raise FrameTooLarge(f"{size} bytes")
        self.sent.append(commands)


def test_sequences_too_large_for_a_message_end_as_errors_and_the_others_go_on() -> None:
    async def test() -> None:
        bench = NarrowBench(1_000).connect()
        huge = replace(request([1], 8).params, allowed_tokens=tuple(range(1000)))
        requests = [request([1, n], 8, id_=n) for n in range(12)]
        for n in (0, 5, 11):
            requests[n] = replace(requests[n], params=huge)
        generation = bench.client.open("a", requests)
        generation.stop(3)
        await asyncio.sleep(0)
        carried = [addition.sequence.id for commands in bench.sent for addition in commands.add]
        assert carried == [1, 2, 3, 4, 6, 7, 8, 9, 10]
        assert [id_ for commands in bench.sent for id_ in commands.abort] == [3]
        bench.step(*(output(n, 1, finish="length") for n in carried if n != 3))
        ended = {one.id: one.finish_reason for item in await read(generation) for one in item}
        assert ended == {n: "error" if n in (0, 5, 11) else "length" for n in range(12) if n != 3}
        assert bench.recorder.outcomes() == {"error": 3, "stop": 1, "length": 8}
        generation.close()
        await bench.client.wait_until_idle()

    run(test)


def test_a_sequence_too_large_alone_does_not_take_the_aborts_with_it() -> None:
    async def test() -> None:
        bench = NarrowBench(1_000).connect()
        first = bench.client.open("a", [request([1], 8)])
        await asyncio.sleep(0)
        second = bench.client.open("b", [request([1] * 2000, 8)])
        first.close()
        await asyncio.sleep(0)
        assert bench.sent[1:] == [Commands(abort=(0,))]
        assert [one.finish_reason for item in await read(second) for one in item] == ["error"]

    run(test)


def test_asking_whether_there_is_room_takes_none_and_counts_every_refusal() -> None:
    async def test() -> None:
        bench = Bench()
        with pytest.raises(EngineUnavailable, match="still loading"):
            bench.client.check_admission("b", 1)
        bench.connect()
        for _ in range(3):
            bench.client.check_admission("a", 16)
        bench.open(10)
        with pytest.raises(QueueFull):
            bench.client.check_admission("a", 7)
        bench.client.check_admission("a", 6)
        bench.client.check_admission("b", 16)
        with pytest.raises(BadRequest, match="17 sequences"):
            bench.client.check_admission("b", 17)
        bench.open(6)
        bench.client.drain()
        with pytest.raises(Draining):
            bench.client.check_admission("a", 1)
        assert bench.recorder.rejected == [("b", "unavailable"), ("a", "queue_full"), ("a", "draining")]
        assert bench.recorder.started == [("a", 10), ("a", 6)]

    run(test)


def test_nothing_comes_for_a_stopped_sequence_not_even_what_had_arrived() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(2)
        bench.step(output(0, 1), output(1, 1))
        generation.stop(0)
        bench.step(output(0, 2), output(1, 2))
        bench.step(output(0, finish="abort"), output(1, 3, finish="length"))
        assert await read(generation) == [[output(1, 1), output(1, 2), output(1, 3, finish="length")]]
        assert bench.recorder.outcomes() == {"stop": 1, "length": 1}

    run(test)


def test_stopping_the_last_sequence_ends_the_iteration() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(1)
        bench.step(output(0, 1))
        assert await anext(generation) == [(0, output(0, 1))]
        generation.stop(0)
        assert await read(generation) == []
        assert bench.recorder.requests[0].outcome == "stop"

    run(test)


def test_closing_aborts_what_is_unfinished_and_nothing_else() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(3)
        await asyncio.sleep(0)
        bench.step(output(1, 5, finish="length"))
        generation.close()
        generation.close()
        await asyncio.sleep(0)
        assert bench.sent[1:] == [Commands(abort=(0, 2))]
        bench.step(output(0, finish="abort"), output(2, finish="abort"))
        assert bench.recorder.outcomes() == {"length": 1, "abort": 2}
        assert [record.outcome for record in bench.recorder.requests] == ["abort"]
        await bench.client.wait_until_idle()

    run(test)


def test_closing_after_the_end_tells_the_engine_nothing() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(1)
        await asyncio.sleep(0)
        bench.step(output(0, 5, finish="stop"))
        generation.stop(0)
        generation.close()
        await asyncio.sleep(0)
        assert len(bench.sent) == 1
        assert bench.recorder.outcomes() == {"stop": 1}

    run(test)


def test_a_sequence_the_engine_refuses_ends_as_an_error_alone() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(2)
        bench.client.receive(Refused((1,)))
        bench.step(output(0, 5, finish="length"))
        assert await read(generation) == [[SequenceOutput(1, finish_reason="error"), output(0, 5, finish="length")]]
        assert bench.recorder.outcomes() == {"error": 1, "length": 1}
        assert [record.outcome for record in bench.recorder.requests] == ["error"]

    run(test)


def test_when_the_engine_dies_a_reader_gets_what_had_arrived_and_then_the_failure() -> None:
    async def test() -> None:
        bench = Bench().connect()
        open_one, finished, waiting = bench.open(2), bench.open(1), bench.open(1, "b")
        reader = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0)
        bench.step(output(0, 1), output(1, 1, finish="stop"), output(2, 5, finish="length"))
        bench.client.disconnect("it died")
        assert not bench.client.is_ready()
        assert await anext(open_one) == [(0, output(0, 1)), (1, output(1, 1, finish="stop"))]
        for _ in range(2):
            with pytest.raises(EngineFailed, match="it died"):
                await anext(open_one)
        with pytest.raises(EngineFailed):
            await reader
        assert await read(finished) == [[output(0, 5, finish="length")]]
        for generation in (open_one, finished, waiting):
            generation.close()
        assert bench.recorder.outcomes() == {"error": 2, "stop": 1, "length": 1}
        assert len(bench.recorder.requests) == 3

    run(test)


def test_after_a_restart_the_old_engines_commands_are_forgotten_and_new_work_flows() -> None:
    async def test() -> None:
        bench = Bench().connect()
        lost = bench.open(1)
        bench.client.disconnect("it died")
        with pytest.raises(EngineUnavailable, match="restarting"):
            bench.open(1)
        assert bench.client.models() == {"a": INFO, "b": INFO}
        bench.connect()
        generation = bench.open(1)
        lost.close()
        await asyncio.sleep(0)
        assert [[addition.sequence.id for addition in sent.add] for sent in bench.sent] == [[1]]
        bench.step(output(0, 8, finish="stop"), output(1, 9, finish="stop"))
        assert await read(generation) == [[output(0, 9, finish="stop")]]

    run(test)


def test_before_the_engine_is_loaded_nothing_is_known_and_nothing_accepted() -> None:
    bench = Bench()
    assert not bench.client.is_ready()
    assert bench.client.models() == {}
    with pytest.raises(EngineUnavailable, match="loading"):
        bench.open(1)
    assert bench.recorder.rejected == [("a", "unavailable")]
    assert bench.recorder.started == []


def test_draining_refuses_new_work_and_lets_the_open_finish() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation, other = bench.open(1), bench.open(1)
        bench.client.drain()
        assert not bench.client.is_ready()
        with pytest.raises(Draining):
            bench.open(1)
        idle = asyncio.create_task(bench.client.wait_until_idle())
        bench.step(output(0, 4, finish="length"))
        assert await read(generation) == [[output(0, 4, finish="length")]]
        other.close()
        await asyncio.sleep(0)
        assert not idle.done()
        assert bench.client.num_open_requests == 1
        generation.close()
        await idle
        assert bench.recorder.rejected == [("a", "draining")]

    run(test)


def test_the_queue_is_bounded_per_model_and_frees_up_as_sequences_are_scheduled() -> None:
    async def test() -> None:
        bench = Bench(QueueLimits(max_waiting=4, max_open=6)).connect()
        bench.open(3)
        with pytest.raises(QueueFull):
            bench.open(2)
        bench.open(1)
        bench.open(4, "b")  # a queue of its own
        bench.step(output(0, 1), output(1, 1), output(2, 1))
        bench.open(2)  # one waits, three run, two more: six are open
        with pytest.raises(QueueFull):
            bench.open(1)
        bench.step(output(0, 2, finish="length"))
        bench.open(1)
        assert bench.recorder.rejected == [("a", "queue_full")] * 2

    run(test)


def test_more_sequences_than_the_queue_ever_holds_are_the_clients_mistake() -> None:
    bench = Bench(QueueLimits(max_waiting=4, max_open=6)).connect()
    with pytest.raises(BadRequest, match=r"5 sequences.*holds 4"):
        bench.open(5)


def test_retry_after_follows_the_rate_at_which_sequences_leave() -> None:
    async def test() -> None:
        bench = Bench(QueueLimits(max_waiting=4, max_open=400)).connect()
        for n in range(10):  # one leaves every 3 seconds
            generation = bench.open(1)
            bench.step(output(n, 1, finish="length"))
            generation.close()
            bench.clock.now += 3.0
        bench.open(4)
        for num_sequences in (1, 3):
            with pytest.raises(QueueFull) as refusal:
                bench.open(num_sequences)
            assert refusal.value.retry_after_seconds == 3 * num_sequences
        bench.clock.now += 10**6
        with pytest.raises(QueueFull) as refusal:
            bench.open(1)
        assert refusal.value.retry_after_seconds == 60

    run(test)


def test_retry_after_is_at_least_a_second() -> None:
    async def test() -> None:
        bench = Bench(QueueLimits(max_waiting=1, max_open=400)).connect()
        bench.open(1)
        with pytest.raises(QueueFull) as refusal:
            bench.open(1)
        assert refusal.value.retry_after_seconds == 1

    run(test)


def test_times_are_taken_from_arrival_over_scheduling_to_the_end() -> None:
    async def test() -> None:
        bench = Bench().connect()
        bench.open(1)
        bench.clock.now = 1003.0
        bench.step(output(0, 1, scheduled_at=1002.0))
        bench.clock.now = 1004.0
        bench.step(output(0, 2, 3, scheduled_at=1002.0))
        bench.clock.now = 1004.5
        bench.step(output(0, finish="stop", scheduled_at=1002.0))
        first, second, third = [timings for _, _, timings in bench.recorder.steps]
        assert (first.queue_seconds, first.prefill_seconds, first.first_token_seconds) == ([2.0], [1.0], [3.0])
        assert (first.gaps, second.gaps, third.gaps) == ([], [TokenGap(0.5, 2)], [])
        (record,) = bench.recorder.finished
        times = (record.arrived_at, record.scheduled_at, record.first_token_at, record.finished_at)
        assert times == (1000.0, 1002.0, 1003.0, 1004.5)
        assert (record.num_prompt_tokens, record.num_output_tokens) == (2, 3)

    run(test)


def test_tokens_that_come_after_equal_times_are_told_of_together() -> None:
    async def test() -> None:
        bench = Bench().connect()
        bench.open(3)
        bench.step(output(0, 1), output(1, 1))
        bench.clock.now = 1001.0
        bench.step(output(0, 2), output(1, 2, 3, 4, 5), output(2, 1))
        bench.clock.now = 1002.0
        bench.step(output(0, 3), output(1, 6), output(2, 2))
        _, second, third = [timings for _, _, timings in bench.recorder.steps]
        assert second.gaps == [TokenGap(1.0, 1), TokenGap(0.25, 4)]
        assert third.gaps == [TokenGap(1.0, 3)]

    run(test)


Action = tuple[str, int, int]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "step", "step", "finish", "stop", "close", "refuse", "die", "connect"]),
        st.integers(0, 30),
        st.integers(1, 3),
    ),
    max_size=60,
)


def play(bench: Bench, generations: list[Generation], live: set[int], action: Action) -> None:
    """One random thing. `live` is what a careful engine would know: ids it was given and has not ended."""
    kind, number, count = action
    ids = sorted(live)
    chosen = ids[number % len(ids)] if ids else None
    match kind:
        case "open" if bench.client.is_ready():
            try:
                generations.append(bench.open(count))
            except QueueFull:
                return
            first = sum(num for _, num in bench.recorder.started) - count
            live.update(range(first, first + count))
        case "step":
            bench.step(*(output(id_, 1) for id_ in ids))
        case "finish" if chosen is not None:
            bench.step(output(chosen, 1, finish="length"))
            live.discard(chosen)
        case "refuse" if chosen is not None:
            bench.client.receive(Refused((chosen,)))
            live.discard(chosen)
        case "stop" if generations:
            generation = generations[number % len(generations)]
            generation.stop(number % len(generation.sequences))
        case "close" if generations:
            generations[number % len(generations)].close()
        case "die":
            bench.client.disconnect("it died")
            live.clear()
        case "connect" if not bench.client.is_ready():
            bench.connect()


@settings(deadline=None, max_examples=150)
@given(ACTIONS)
def test_started_is_outcomes_plus_in_flight_at_every_moment(actions: list[Action]) -> None:
    async def test() -> None:
        bench = Bench(QueueLimits(max_waiting=12, max_open=16)).connect()
        generations: list[Generation] = []
        live: set[int] = set()
        for action in actions:
            play(bench, generations, live, action)
            num_open = sum(sequence.outcome is None for one in generations for sequence in one.sequences)
            started = sum(num for _, num in bench.recorder.started)
            assert started == len(bench.recorder.finished) + num_open
            unfinished = sum(any(sequence.outcome is None for sequence in one.sequences) for one in generations)
            assert len(bench.recorder.started) == len(bench.recorder.requests) + unfinished
        for generation in generations:
            generation.close()
        assert sum(num for _, num in bench.recorder.started) == len(bench.recorder.finished)
        await bench.client.wait_until_idle()
        # Nothing left behind: the whole queue is there for the next.
        bench.client.disconnect("done")
        bench.connect()
        bench.open(12)

    run(test)


def test_the_client_and_a_core_agree_on_every_token() -> None:
    async def test() -> None:
        bench, core = Bench().connect(), FakeCore(max_running=3, tokens_per_step=2)
        prompts = [[n, 2 * n] for n in range(7)]
        generation = bench.client.open("a", [request(prompt, 9, id_=n) for n, prompt in enumerate(prompts)])
        await asyncio.sleep(0)
        for addition in bench.sent[0].add:
            core.add(replace(addition.sequence, id=addition.sequence.id))
        while core.has_work():
            bench.client.receive(StepReport(0, core.step()))
        tokens: dict[int, list[int]] = {}
        for item in await read(generation):
            for one in item:
                tokens.setdefault(one.id, []).extend(one.tokens)
        assert tokens == {n: expected_tokens(prompt, 9) for n, prompt in enumerate(prompts)}

    run(test)


def plain_step(bench: Bench, *outputs: SequenceOutput) -> None:
    """A step as it comes over the wire."""
    bench.client.receive(StepReport.of(0, StepOutput(outputs, STATS)))


def test_a_tap_takes_plain_tokens_while_the_reader_waits_and_the_reader_gets_all_else() -> None:
    async def test() -> None:
        bench = Bench().connect()
        generation = bench.open(2)
        told: list[object] = []

        def take(tokens: Sequence[int]) -> int:
            taken = list(takewhile(lambda token: token % 2, tokens))
            told.extend(taken)
            return len(taken)

        async def reader() -> None:
            async for item in generation:
                told.append([(index, output.tokens) for index, output in item])

        generation.tap(0, take)
        reading = asyncio.create_task(reader())
        await asyncio.sleep(0)
        plain_step(bench, output(0, 1), output(1, 1))  # a first token never is the tap's
        plain_step(bench, output(0, 3))  # the reader is not back yet
        await asyncio.sleep(0)
        plain_step(bench, output(0, 5))
        plain_step(bench, output(0, 7, 21, 23))
        plain_step(bench, output(0, 25, 8, 27))
        plain_step(bench, output(0, 9))  # behind one that was refused
        await asyncio.sleep(0)
        plain_step(bench, output(0, 11), output(1, 13, finish="length"))
        await asyncio.sleep(0)
        generation.tap(0, None)
        plain_step(bench, output(0, 15))
        await asyncio.sleep(0)
        plain_step(bench, output(0, 17))
        plain_step(bench, output(0, 19, finish="length"))
        await reading
        assert told == [
            [(0, (1,)), (1, (1,)), (0, (3,))],
            5,
            7,
            21,
            23,
            25,
            [(0, (8, 27)), (0, (9,))],
            11,
            [(1, (13,))],
            [(0, (15,))],
            [(0, (17,)), (0, (19,))],
        ]

    run(test)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=6), max_size=12))
@settings(deadline=None)
def test_the_books_are_the_same_however_outputs_come(steps: list[list[tuple[int, int]]]) -> None:
    async def books(bench: Bench, is_tapped: bool) -> tuple[object, ...]:
        bench.connect()
        generation = bench.open(4)
        reading = asyncio.create_task(read(generation))
        for index in range(4):
            generation.tap(index, len if is_tapped else None)
        for seconds, step in enumerate(steps):
            await asyncio.sleep(0)
            bench.clock.now += seconds
            outputs = [output(id_, *range(num_tokens)) for id_, num_tokens in dict(step).items()]
            (plain_step if is_tapped else Bench.step)(bench, *outputs)
        bench.step(*(output(id_, 5, finish="length") for id_ in range(4)))
        await reading
        gaps = [{gap.seconds: gap.num_tokens for gap in timings.gaps} for _, _, timings in bench.recorder.steps]
        firsts = [sorted(timings.first_token_seconds) for _, _, timings in bench.recorder.steps]
        queued = [sorted(timings.queue_seconds) for _, _, timings in bench.recorder.steps]
        return gaps, firsts, queued, bench.recorder.finished, bench.recorder.requests

    async def test() -> None:
        assert await books(Bench(), is_tapped=True) == await books(Bench(), is_tapped=False)

    run(test)
