"""Lookups against a search of the whole text, and their limits."""

import random

import pytest
from drafting_cases import prompt, speculating
from engine_driver import decode, engine_core
from tiny_models import GQA, tiny_model

from server.engine.drafting.lookup import LookupDrafter
from server.engine.drafting.ngram import MAX_NGRAM, MIN_NGRAM, NgramIndex
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.drafting.suffix import MIN_MATCH, SuffixIndex
from server.engine.params import SamplingParams
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence
from server.engine.types import SequenceRequest


def text_of(seed: int, length: int, num_kinds: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(num_kinds) for _ in range(length)]


def searched_ngram(text: list[int], count: int) -> tuple[int, ...]:
    """Look at every earlier place, latest first, for the longest n-gram."""
    for size in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :]:
                going_on = list(text)
                for offset in range(count):
                    going_on.append(going_on[end + offset])
                return tuple(going_on[len(text) :])
    return ()


def searched_suffix(text: list[int]) -> int | None:
    """The most frequent token (of equals the latest) behind the longest suffix that occurs earlier."""
    for size in range(len(text) - 1, MIN_MATCH - 1, -1):
        ends = [end for end in range(size, len(text)) if text[end - size : end] == text[len(text) - size :]]
        if ends:
            following = [text[end] for end in ends]
            latest = dict(zip(following, ends, strict=True))
            return max(latest, key=lambda token: (following.count(token), latest[token]))
    return None


@pytest.mark.parametrize("num_kinds", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_ngrams_are_found_as_by_searching(seed: int, num_kinds: int) -> None:
    text = text_of(seed, 120, num_kinds)
    index = NgramIndex()
    for end, token in enumerate(text, start=1):
        index.extend([token])
        assert index.continuation(5) == searched_ngram(text[:end], 5)


@pytest.mark.parametrize("num_kinds", [2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_suffixes_are_found_as_by_searching(seed: int, num_kinds: int) -> None:
    text = text_of(seed, 120, num_kinds)
    index = SuffixIndex()
    for end, token in enumerate(text, start=1):
        index.extend([token])
        found = index.continuation(1)
        assert (found[0] if found else None) == searched_suffix(text[:end])


@pytest.mark.parametrize("make_index", [NgramIndex, SuffixIndex])
def test_repetition_goes_on_for_as_long_as_asked(make_index: type[NgramIndex] | type[SuffixIndex]) -> None:
    index = make_index()
    index.extend([1, 2, 3] * 6)
    assert index.continuation(8) == (1, 2, 3, 1, 2, 3, 1, 2)
    assert index.num_tokens == 18


@pytest.mark.parametrize("make_index", [NgramIndex, SuffixIndex])
def test_text_without_repetition_has_no_continuation(make_index: type[NgramIndex] | type[SuffixIndex]) -> None:
    index = make_index()
    index.extend(range(50))
    assert index.continuation(4) == ()
    assert make_index().continuation(4) == ()


def test_a_long_prompt_is_indexed_over_several_steps_and_drafts_only_then() -> None:
    request = SequenceRequest(0, (1, 2, 3) * 20, SamplingParams())
    chunk = Chunk(Sequence(request), 0, 60, num_drafts=2)
    drafter = LookupDrafter(SuffixIndex, max_indexed=25)
    drafts = [drafter.draft([chunk], {}) for _ in range(3)]
    assert drafts == [{}, {}, {0: (1, 2)}]


def test_a_sequence_never_drafts_from_another_ones_tokens() -> None:
    request = SequenceRequest(0, prompt(40, 1), SamplingParams())
    drafter = LookupDrafter(NgramIndex)
    drafter.draft([Chunk(Sequence(request), 0, 40, num_drafts=4)], {})
    stranger = SequenceRequest(1, (*range(50, 60), *prompt(40, 1)[:5]), SamplingParams())
    assert drafter.draft([Chunk(Sequence(stranger), 0, 15, num_drafts=4)], {}) == {}


def test_an_ended_sequence_leaves_no_index_behind() -> None:
    speculator = DraftingSpeculator()
    request = SequenceRequest(0, prompt(40, 1), SamplingParams(max_tokens=5))
    decode(engine_core(tiny_model(GQA), speculator=speculator), speculating([request], "suffix"))
    drafter = speculator._drafters["suffix"]
    assert isinstance(drafter, LookupDrafter)
    assert drafter._indexes == {}
