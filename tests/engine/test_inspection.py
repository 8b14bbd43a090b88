"""What a core says about itself: blocks conserve in every answer, hashes are their owner's alone, steps add up."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from engine_driver import drain, engine_core
from tiny_models import GQA, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from server.engine.block_pool import BLOCK_SIZE, block_hash, salted_root
from server.engine.core import EngineCore
from server.engine.inspection import Inspection, PrefixBlock
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

LIMIT = 1000
SALTS = ("a|", "a|x", "b|")


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(GQA)


def request(id_: int, length: int, max_tokens: int = 40, salt: str = "a|") -> SequenceRequest:
    """Prompts of one salt share a stem."""
    stem = [(7 * place + 3) % VOCAB_SIZE for place in range(length - 1)]
    params = SamplingParams(max_tokens=max_tokens, seed=id_, ignore_eos=True)
    return SequenceRequest(id_, (*stem, 1 + id_ % 90), params, salt)


def crowd() -> list[SequenceRequest]:
    """Far more than twelve blocks hold at a time."""
    return [request(id_, 18 + 5 * (id_ % 7), 20 + id_ % 30, SALTS[id_ % 3]) for id_ in range(24)]


def check_conserved(answer: Inspection) -> None:
    assert answer.num_free + answer.num_cached + answer.num_referenced == answer.num_blocks


def test_blocks_conserve_in_every_answer_under_load_and_preemption(model: GPT) -> None:
    core = engine_core(model, num_blocks=12, max_running=8, max_step_tokens=48)
    answers = []

    def ask(core: EngineCore, step: int) -> None:
        for prefix in ("", "a|", "b|", "nobody|"):
            answers.append(core.inspect(prefix, LIMIT))
            check_conserved(answers[-1])

    for one in crowd():
        core.add(one)
    run = drain(core, ask)
    assert sum(stats.num_preemptions for stats in run.stats) > 3
    assert len(answers) > 400
    assert len({(answer.num_free, answer.num_cached, answer.num_referenced) for answer in answers}) > 10


def test_tables_account_for_every_reference(model: GPT) -> None:
    core = engine_core(model, num_blocks=12, max_running=8, max_step_tokens=48)
    seen: Counter[bool] = Counter()

    def compare(core: EngineCore, step: int) -> None:
        answer = core.inspect("", LIMIT)
        held = Counter(block for sequence in answer.sequences for block in sequence.blocks)
        assert len(held) == answer.num_referenced
        for entry in answer.prefix_blocks:
            assert entry.num_references == held[entry.block]
            assert (entry.eviction_rank is None) == (entry.num_references > 0)
            seen[entry.eviction_rank is None] += 1
        for sequence in answer.sequences:
            assert sequence.num_blocks == len(sequence.blocks)
            assert sequence.num_computed_tokens <= sequence.num_blocks * BLOCK_SIZE
            assert sequence.is_running or not sequence.blocks

    for one in crowd():
        core.add(one)
    drain(core, compare)
    assert min(seen[True], seen[False]) > 50


def test_the_prefix_tree_is_the_chain_of_hashes_of_what_was_computed(model: GPT) -> None:
    core = engine_core(model)
    asked = request(0, 50, max_tokens=30)
    core.add(asked)
    tokens = [*asked.prompt, *drain(core).results[0].tokens]
    expected: list[tuple[bytes, bytes | None]] = []
    chained, parent = salted_root("a|"), None
    for start in range(0, len(tokens) - BLOCK_SIZE, BLOCK_SIZE):  # the last token is never computed
        chained = block_hash(chained, tokens[start : start + BLOCK_SIZE])
        expected.append((chained, parent))
        parent = chained
    answer = core.inspect("a|", LIMIT)
    assert [(entry.content, entry.parent) for entry in answer.prefix_blocks] == expected
    assert answer.num_cached == answer.num_prefix_blocks == len(expected) == 4


def test_eviction_takes_the_lowest_rank_first(model: GPT) -> None:
    core = engine_core(model, num_blocks=16)
    for id_ in range(3):
        core.add(replace(request(id_, 40, max_tokens=2), prompt=(id_ + 5,) * 40))
        drain(core)
    by_rank = sorted(core.inspect("", LIMIT).prefix_blocks, key=lambda entry: entry.eviction_rank or 0)
    assert [entry.eviction_rank for entry in by_rank] == list(range(6))
    pool = core.scheduler.pool
    for _ in range(pool.num_free):
        pool.allocate()
    assert [pool.allocate() for _ in range(6)] == [entry.block for entry in by_rank]


def test_an_asker_sees_counts_of_others_and_nothing_else(model: GPT) -> None:
    core = engine_core(model)
    mine, others = request(1, 40, salt="a|x"), request(2, 60, salt="b|")
    for one in (mine, others, request(3, 33, salt="ab|")):
        core.add(one)
    finished = request(4, 48, max_tokens=1, salt="b|")
    core.add(finished)
    while 4 not in {output.id for output in core.step().outputs}:
        assert core.has_work()
    answer = core.inspect("a|", LIMIT)
    assert [sequence.id for sequence in answer.sequences] == [1]
    assert sorted(answer.others) == [3, 4]
    assert answer.num_sequences == 1
    assert answer.num_other_sequences == 2
    own_hashes = hashes_of(mine)
    assert {entry.content for entry in answer.prefix_blocks} == own_hashes
    everything = {entry.content for entry in core.inspect("", LIMIT).prefix_blocks}
    assert everything > own_hashes | hashes_of(others) | hashes_of(finished)


def test_with_equal_text_the_hashes_of_two_tenants_have_nothing_in_common(model: GPT) -> None:
    core = engine_core(model)
    for id_, salt in enumerate(("a|", "b|")):
        core.add(replace(request(7, 64, max_tokens=1, salt=salt), id=id_))
    drain(core)
    first, second = (contents(core.inspect(prefix, LIMIT).prefix_blocks) for prefix in ("a|", "b|"))
    assert len(first) == len(second) == 4
    assert first.isdisjoint(second)


def test_lists_stop_at_the_limit_and_counts_do_not(model: GPT) -> None:
    core = engine_core(model)
    for one in crowd()[:12]:
        core.add(one)
    for _ in range(3):
        core.step()
    whole, cut = core.inspect("a|", LIMIT), core.inspect("a|", 3)
    assert len(whole.sequences) > 3 < len(whole.prefix_blocks)
    assert [len(entries) for entries in (cut.sequences, cut.others, cut.prefix_blocks)] == [3, 3, 3]
    assert sum(len(sequence.blocks) for sequence in cut.sequences) == 3
    assert [one.num_blocks for one in cut.sequences] == [one.num_blocks for one in whole.sequences[:3]]
    assert cut.num_prefix_blocks == whole.num_prefix_blocks == len(whole.prefix_blocks)
    assert cut.num_sequences == len(whole.sequences)
    check_conserved(cut)


def test_a_cut_prefix_tree_keeps_the_parents_of_what_it_shows(model: GPT) -> None:
    core = engine_core(model)
    for one in crowd()[:9]:
        core.add(one)
    drain(core)
    num_blocks = core.inspect("", LIMIT).num_prefix_blocks
    for limit in range(1, num_blocks + 1):
        seen: set[bytes] = set()
        for entry in core.inspect("", limit).prefix_blocks:
            assert entry.parent is None or entry.parent in seen
            seen.add(entry.content)


def test_origins_of_evicted_blocks_are_forgotten(model: GPT) -> None:
    core = engine_core(model, num_blocks=8)
    for id_ in range(40):
        core.add(replace(request(id_, 64, max_tokens=1), prompt=(id_ + 1,) * 64))
        drain(core)
    assert len(core._lineage._origins) <= 16
    assert core.inspect("", LIMIT).num_prefix_blocks == core.scheduler.pool.num_cached


def test_asking_changes_nothing(model: GPT) -> None:
    undisturbed = engine_core(model, num_blocks=12, max_running=8, max_step_tokens=48)
    asked = engine_core(model, num_blocks=12, max_running=8, max_step_tokens=48)
    for one in crowd():
        undisturbed.add(one)
        asked.add(one)
    expected = drain(undisturbed)
    run = drain(asked, lambda core, step: check_conserved(core.inspect("", LIMIT)))
    assert run.results == expected.results
    assert [stats.sequences for stats in run.stats] == [stats.sequences for stats in expected.stats]


def test_a_step_tells_who_ran_with_how_many_tokens(model: GPT) -> None:
    core = engine_core(model, max_step_tokens=32, max_running=4)
    core.add(request(5, 40, max_tokens=3))
    steps = [[tuple(one) for one in stats.sequences] for stats in drain(core).stats]
    assert steps == [[(5, 32, 0, 0, 0)], [(5, 8, 0, 0, 0)], [(5, 0, 1, 0, 0)], [(5, 0, 1, 0, 0)]]


def test_the_parts_of_a_step_add_up_to_the_whole(model: GPT) -> None:
    core = engine_core(model, num_blocks=12, max_running=8, max_step_tokens=48)
    for one in crowd():
        core.add(one)
    run = drain(core)
    for stats in run.stats:
        assert sum(one.num_prompt_tokens for one in stats.sequences) == stats.num_prompt_tokens
        assert len({one.id for one in stats.sequences}) == len(stats.sequences)
    # Outputs are fed back one at a time, except in replays.
    assert any(one.num_decode_tokens > 1 for stats in run.stats for one in stats.sequences)
    assert all(earlier.started_at < later.started_at for earlier, later in pairwise(run.stats))


def hashes_of(asked: SequenceRequest) -> set[bytes]:
    """Of the prompt's full blocks."""
    chained, found = salted_root(asked.cache_salt), set()
    for start in range(0, len(asked.prompt) - BLOCK_SIZE + 1, BLOCK_SIZE):
        chained = block_hash(chained, asked.prompt[start : start + BLOCK_SIZE])
        found.add(chained)
    return found


def contents(entries: tuple[PrefixBlock, ...]) -> set[bytes]:
    return {entry.content for entry in entries}
