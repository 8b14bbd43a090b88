"""The engine core over a memory of token ids, under arbitrary arrivals, aborts, preemptions and pool sizes."""

from collections import Counter
from collections.abc import Callable

import pytest
from engine_driver import EOS, Run, core_on, engine_info, preempt
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from token_memory import TokenMemory, expected_result

import server.engine.sequence
from server.engine.block_pool import BLOCK_SIZE, BlockPool, block_hash
from server.engine.params import SamplingParams
from server.engine.scheduler import Scheduler
from server.engine.types import SequenceRequest

VOCAB_SIZE = 23
STEMS = tuple(tuple((stem * 7 + index * (stem + 2)) % VOCAB_SIZE for index in range(64)) for stem in range(2))


class EngineMachine(RuleBasedStateMachine):
    """Every sequence must get what it gets alone, in exactly one ending, while blocks are conserved."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Run()
        self.requests: dict[int, SequenceRequest] = {}
        self.aborted: set[int] = set()
        self.first_run: list[int] = []

    @initialize(blocks=st.integers(4, 12), running=st.integers(1, 6), extra=st.integers(0, 40))
    def start(self, blocks: int, running: int, extra: int) -> None:
        limits = (running, running + extra)
        self.memory = TokenMemory(blocks, VOCAB_SIZE, limits)
        self.core = core_on(self.memory, engine_info(VOCAB_SIZE, blocks * BLOCK_SIZE, blocks), limits)

    @rule(
        stem=st.sampled_from(STEMS),
        lengths=st.tuples(st.integers(0, 50), st.integers(0, 30)),
        own=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
        ignore_eos=st.booleans(),
        salt=st.sampled_from(["", "", "tenant"]),
    )
    def add(self, stem: tuple[int, ...], lengths: tuple[int, int], own: list[int], ignore_eos: bool, salt: str) -> None:
        shared, wanted = lengths
        context_length = self.core.info.context_length
        prompt = (*stem[:shared], *own)[:context_length]
        max_tokens = min(wanted, context_length - len(prompt))
        params = SamplingParams(max_tokens, temperature=0.0, ignore_eos=ignore_eos, stop_token_ids=(5,))
        request = SequenceRequest(len(self.requests), prompt, params, salt)
        self.requests[request.id] = request
        self.core.add(request)

    @precondition(lambda self: self.core.has_work())
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work():
                self.step_once()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Any sequence, finished ones included, in whatever state it is."""
        id_ = data.draw(st.sampled_from(sorted(self.requests)))
        if id_ not in self.seen.results or self.seen.results[id_].finish_reason is None:
            self.aborted.add(id_)
        self.core.abort([id_, 10**6])

    @precondition(lambda self: self.core.scheduler.running)
    @rule(count=st.integers(1, 3))
    def preempt_newest(self, count: int) -> None:
        for _ in range(count):
            preempt(self.core)

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def blocks_are_conserved_and_owned_once(self) -> None:
        scheduler = self.core.scheduler
        scheduler.pool.check()
        held = Counter(block for sequence in scheduler.running for block in sequence.blocks)
        assert all(scheduler.pool.references(block) == held[block] for block in range(scheduler.pool.num_blocks))
        assert not any(sequence.blocks for sequence in scheduler.waiting)
        for sequence in scheduler.running:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            assert len(sequence.blocks) * BLOCK_SIZE >= sequence.num_computed

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def first_come_is_first_served(self) -> None:
        scheduler = self.core.scheduler
        order = [sequence.request.id for sequence in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order)
        assert len(scheduler.running) <= scheduler.max_running

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        most = sum(len(request.prompt) + request.params.max_tokens + 2 for request in self.requests.values())
        for _ in range(most * max(1, len(self.requests))):
            if not self.core.has_work():
                break
            self.step_once()
            self.blocks_are_conserved_and_owned_once()
        assert not self.core.has_work(), "the engine makes no progress"
        assert self.core.scheduler.pool.num_available == self.core.scheduler.pool.num_blocks
        self.everyone_got_what_they_get_alone()

    def step_once(self) -> None:
        run_before = self.memory.num_tokens_run
        output = self.core.step()
        self.seen.add(output)
        assert self.memory.num_tokens_run > run_before or output.outputs, "a step without any progress"

    def everyone_got_what_they_get_alone(self) -> None:
        assert self.seen.results.keys() == self.requests.keys()
        for id_, request in self.requests.items():
            expected = expected_result(request, VOCAB_SIZE, (EOS,))
            result = self.seen.results[id_]
            if id_ in self.aborted:
                assert result.finish_reason == "abort"
                assert result.tokens == expected.tokens[: len(result.tokens)]
            else:
                assert result == expected


SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)
EngineMachine.TestCase.settings = SETTINGS
test_disturbed_engines_serve_as_undisturbed_ones = EngineMachine.TestCase


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_disturbed_engines_serve_as_undisturbed_ones_for_long() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(SETTINGS, max_examples=1500, stateful_step_count=80))


def break_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine.sequence, "block_hash", lambda parent, tokens: block_hash(parent, tokens[:4]))


def break_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockPool, "share", lambda self, block: self._cached.pop(block, None))


def break_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "add", lambda self, sequence: self.waiting.appendleft(sequence))


def break_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a preempted or finished sequence are handed out while the index still knows them."""
    monkeypatch.setattr(BlockPool, "_forget", lambda self, block: None)


@pytest.mark.parametrize("sabotage", [break_hashes, break_references, break_the_queue, break_publishing])
def test_control_of_the_machine(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colliding hashes, uncounted references, a queue that is jumped and blocks findable after eviction are noticed."""
    sabotage(monkeypatch)
    search = settings(SETTINGS, max_examples=300, phases=[Phase.generate], database=None, print_blob=False)
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(EngineMachine, settings=search)
