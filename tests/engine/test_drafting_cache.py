"""The draft model's books of its cache: a block counts only while it holds that very content."""

from drafting_cases import draft_model, prompt, speculating
from engine_driver import decode, engine_core
from tiny_models import GQA, tiny_model

from server.engine.block_pool import BLOCK_SIZE
from server.engine.drafting.draft_cache import DraftCacheLedger
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.params import SamplingParams
from server.engine.sequence import Sequence
from server.engine.types import SequenceRequest


def sequence(tokens: tuple[int, ...], blocks: list[int], salt: str = "") -> Sequence:
    made = Sequence(SequenceRequest(0, tokens, SamplingParams(), cache_salt=salt))
    made.blocks = blocks
    return made


def fill(ledger: DraftCacheLedger, filled: Sequence, num_tokens: int) -> None:
    ledger.overwrite(filled, filled.num_draft_computed, num_tokens)
    ledger.advance(filled, num_tokens)


def skipped(ledger: DraftCacheLedger, tokens: tuple[int, ...], blocks: list[int], salt: str = "") -> int:
    late = sequence(tokens, blocks, salt)
    ledger.skip_filled(late, len(tokens) - 1)
    return late.num_draft_computed


TEXT = prompt(60, 1)


def test_full_blocks_of_the_same_prefix_are_skipped_and_partial_ones_are_not() -> None:
    ledger = DraftCacheLedger()
    fill(ledger, sequence(TEXT, [5, 3, 8, 1]), 40)
    assert skipped(ledger, TEXT, [5, 3, 8, 1]) == 2 * BLOCK_SIZE
    assert skipped(ledger, TEXT, [5, 4, 8, 1]) == BLOCK_SIZE  # the target put another block there
    assert skipped(ledger, (9, *TEXT[1:]), [5, 3, 8, 1]) == 0
    assert skipped(ledger, TEXT, [5, 3, 8, 1], salt="another tenant") == 0


def test_the_last_token_is_never_skipped_as_its_logits_are_needed() -> None:
    ledger = DraftCacheLedger()
    fill(ledger, sequence(TEXT[:32], [0, 1]), 32)
    assert skipped(ledger, TEXT[:32], [0, 1]) == BLOCK_SIZE
    assert skipped(ledger, TEXT[:33], [0, 1, 2]) == 2 * BLOCK_SIZE


def test_a_block_filled_in_pieces_counts_when_it_is_full() -> None:
    ledger = DraftCacheLedger()
    slow = sequence(TEXT, [0, 1, 2, 3])
    for end, known in ((5, 0), (16, 16), (31, 16), (50, 48)):
        fill(ledger, slow, end)
        assert skipped(ledger, TEXT, [0, 1, 2, 3]) == known


def test_a_block_that_was_written_to_since_holds_nothing_known() -> None:
    """Though the target may have put the old content back into it, for a sequence that does not draft."""
    ledger = DraftCacheLedger()
    fill(ledger, sequence(TEXT, [0, 1, 2, 3]), 48)
    fill(ledger, sequence(prompt(20, 2), [1, 7]), 3)
    assert skipped(ledger, TEXT, [0, 1, 2, 3]) == BLOCK_SIZE


def test_drafting_over_a_cached_prompt_computes_only_what_is_new() -> None:
    target = tiny_model(GQA)
    model = draft_model(target)
    seen: list[int] = []
    run = model._runner.run

    def counting(tokens, spans, wanted):  # type: ignore[no-untyped-def]
        seen.append(len(tokens))
        return run(tokens, spans, wanted)

    model._runner.run = counting  # type: ignore[method-assign]
    core = engine_core(target, speculator=DraftingSpeculator(model))
    requests = [SequenceRequest(id_, TEXT, SamplingParams(max_tokens=3, temperature=0.0)) for id_ in (0, 1)]
    for request, expected in zip(requests, (60, 60 - 48), strict=True):
        seen.clear()
        decode(core, speculating([request], "draft"))
        assert seen[0] == expected
