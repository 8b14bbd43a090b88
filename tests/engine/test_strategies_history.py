"""What looks back: windows of penalties, DRY, n-grams and bad words, against brute force over short histories."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampler_oracle import HIDDEN
from strategies_oracle import dry_match, unbroken

from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Row, choose
from server.engine.sampling.constraints import allowed_by, hidden_tokens
from server.engine.sampling.ranges import MAX_MATCH
from server.engine.sampling.repeats import MAX_DRY_PENALTY, Dry, dry_penalties, match_lengths

VOCAB_SIZE = 5
TOKEN = st.integers(0, 2)  # few, so that histories repeat themselves
HISTORY = st.lists(TOKEN, max_size=14)
Words = tuple[tuple[int, ...], ...]
Tokens = NDArray[np.int32]
SEQUENCES = st.lists(st.lists(TOKEN, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
FAST = settings(deadline=None, max_examples=200)


def state_of(params: SamplingParams, prompt: list[int], output: list[int]) -> DecodingState:
    state = DecodingState.of(params, prompt, VOCAB_SIZE)
    assert state is not None
    for token in output:
        state.append(token)
    return state


@FAST
@given(HISTORY, HISTORY, st.integers(-1, 30))
def test_counts_are_those_of_the_last_n_tokens(prompt: list[int], output: list[int], last: int) -> None:
    state = state_of(SamplingParams(repetition_penalty=2.0, repeat_last_n=last), prompt, output)
    tokens = [*prompt, *output]
    inside = range(0 if last < 0 else max(0, len(tokens) - last), len(tokens))
    for token in range(VOCAB_SIZE):
        assert state.seen[token] == sum(tokens[i] == token for i in inside)
        assert state.said[token] == sum(tokens[i] == token for i in inside if i >= len(prompt))


def penalties_of(tokens: Tokens, matches: Tokens, dry: Dry) -> dict[int, float]:
    return dict(zip(*(array.tolist() for array in dry_penalties(tokens, matches, dry)), strict=True))


@FAST
@given(HISTORY, HISTORY, SEQUENCES, st.integers(1, 3))
def test_dry_penalises_what_would_extend_a_repetition(
    prompt: list[int], output: list[int], breakers: Words, allowed: int
) -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_breakers=breakers)
    state, tokens = state_of(params, prompt, output), [*prompt, *output]
    assert state.unbroken == unbroken(tokens, breakers)
    matches = {token: dry_match(tokens, token, state.unbroken) for token in range(VOCAB_SIZE)}
    expected = {token: 2.0 ** (length - allowed) for token, length in matches.items() if length >= allowed}
    assert penalties_of(state.tokens, state.matches, Dry(1.0, 2.0, allowed, state.unbroken)) == expected


def test_the_longest_repetition_counts_no_further_and_leaves_a_candidate() -> None:
    tokens = np.zeros(5_000, dtype=np.int32)
    matches = match_lengths(tokens)
    mild, strong = Dry(1.0, 1.01, 1, MAX_MATCH), Dry(100.0, 10.0, 1, MAX_MATCH)
    assert penalties_of(tokens, matches, mild) == {0: pytest.approx(1.01 ** (MAX_MATCH - 1))}
    assert penalties_of(tokens, matches, strong) == {0: MAX_DRY_PENALTY}
    params = SamplingParams(dry_multiplier=100.0, dry_base=10.0, temperature=1e-38, allowed_tokens=(0,))
    row = Row(params, 5_000, state=DecodingState.of(params, tokens.tolist(), 2))
    assert choose(torch.zeros(1, 2), [row]) == [0]


@FAST
@given(st.lists(st.integers(0, 1), max_size=6), st.integers(1, 40))
def test_a_match_is_as_long_as_what_precedes_two_places_agrees(unit: list[int], repeats: int) -> None:
    tokens = [2, *unit] * repeats
    expected = [
        next((n for n in range(end) if tokens[end - 1 - n] != tokens[-1 - n]), end) for end in range(1, len(tokens))
    ]
    lengths = match_lengths(np.array(tokens, dtype=np.int32))
    assert lengths.clip(max=MAX_MATCH).tolist() == [min(length, MAX_MATCH) for length in expected]


def test_one_more_token_costs_the_same_whatever_the_history_and_the_lists_say() -> None:
    """8,000 equal tokens extend 8,000 matches at once, and 1,024 words begin alike; 16,384 breakers interrupt none."""
    words = tuple((0, 0, token) for token in range(512)) + tuple((token,) for token in range(600, 1112))
    breakers = tuple((token,) for token in range(1, 16_385))
    lists = SamplingParams(dry_breakers=breakers, bad_words=words, allowed_tokens=(0,))
    params = replace(lists, dry_multiplier=1.0, no_repeat_ngram_size=100)
    started = time.process_time()
    row = Row(params, 8_000, state=DecodingState.of(params, [0] * 8_000, 20_000))
    prepared = time.process_time()
    assert prepared - started < 0.05
    for _ in range(20):
        assert choose(torch.zeros(1, 20_000), [row]) == [0]
    assert (time.process_time() - prepared) / 20 < 0.015


def completes(tokens: list[int], sequence: tuple[int, ...], token: int) -> bool:
    extended = (*tokens, token)
    return len(extended) >= len(sequence) and extended[len(extended) - len(sequence) :] == sequence


@FAST
@given(HISTORY, HISTORY, SEQUENCES)
def test_bad_words_are_never_completed(prompt: list[int], output: list[int], words: Words) -> None:
    assume(words)
    params = SamplingParams(bad_words=words)
    hidden = hidden_tokens(Row(params, 0, state=state_of(params, prompt, output)), VOCAB_SIZE)
    tokens = [*prompt, *output]
    assert hidden.tolist() == [any(completes(tokens, word, token) for word in words) for token in range(VOCAB_SIZE)]


@FAST
@given(HISTORY, HISTORY, st.integers(1, 5))
def test_no_ngram_comes_twice(prompt: list[int], output: list[int], size: int) -> None:
    params = SamplingParams(no_repeat_ngram_size=size)
    hidden = hidden_tokens(Row(params, 0, state=state_of(params, prompt, output)), VOCAB_SIZE)
    tokens = (*prompt, *output)
    ngrams = {tokens[i : i + size] for i in range(len(tokens) - size + 1)}
    new = [(*tokens[len(tokens) - size + 1 :], token) for token in range(VOCAB_SIZE)]
    assert hidden.tolist() == [ngram in ngrams and len(tokens) >= size - 1 for ngram in new]


def test_a_long_answer_without_repeated_bigrams_or_bad_words_goes_on_to_the_last_possible_token() -> None:
    params = SamplingParams(no_repeat_ngram_size=2, bad_words=((0,), (1, 2)), temperature=2.0)
    state = DecodingState.of(params, (3,), VOCAB_SIZE)
    tokens = [3]
    for position in range(1, 12):
        tokens += choose(torch.zeros(1, VOCAB_SIZE), [Row(params, position, state=state)])
    pairs = list(pairwise(tokens))
    assert 0 not in tokens
    assert (1, 2) not in pairs
    assert len(set(pairs[:8])) == 8


def test_what_would_hide_every_token_is_passed_over() -> None:
    params = SamplingParams(no_repeat_ngram_size=1, bad_words=((4,),), temperature=0.0)
    row = Row(params, 5, state=state_of(params, [0, 1, 2, 3], []))
    assert choose(torch.tensor([[1.0, 3.0, 0.0, 0.0, 9.0]]), [row]) == [1]  # the bad word is out, the n-grams are not


MASKS = st.lists(st.booleans(), min_size=70, max_size=70).filter(any)


def packed(allowed: list[bool]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    words = [sum(allow << bit for bit, allow in enumerate(allowed[i : i + 32])) for i in range(0, len(allowed), 32)]
    return np.array(words, dtype=np.uint32).view(np.int32)


@FAST
@given(MASKS, st.sets(st.integers(0, 69), max_size=6))
def test_a_mask_hides_tokens_and_outweighs_lists_that_leave_none(allowed: list[bool], banned: set[int]) -> None:
    mask = packed(allowed)
    assert allowed_by(mask, 70).tolist() == allowed
    assert allowed_by(mask, 100).tolist() == [*allowed, *[False] * 30]
    row = Row(SamplingParams(banned_tokens=tuple(banned)), 0, mask=mask)
    left = [allow and token not in banned for token, allow in enumerate(allowed)]
    assert (~hidden_tokens(row, 70)).tolist() == (left if any(left) else allowed)
    assert allowed[choose(torch.zeros(1, 70), [row])[0]]


LOOKING_BACK = SamplingParams(
    frequency_penalty=0.5, dry_multiplier=1.0, dry_breakers=((1,),), mirostat=2, repeat_last_n=3
)


@FAST
@given(HISTORY, HISTORY, HISTORY)
def test_a_fork_goes_its_own_way(prompt: list[int], output: list[int], draft: list[int]) -> None:
    state = state_of(LOOKING_BACK, prompt, output)
    fork = state.fork()
    for token in draft:
        fork.append(token)
        fork.mu -= 1.0
    for mine, others in ((state, output), (fork, output + draft)):
        fresh = state_of(LOOKING_BACK, prompt, others)
        assert mine.tokens.tolist() == [*prompt, *others]
        assert (mine.seen == fresh.seen).all()
        assert (mine.said == fresh.said).all()
        assert mine.unbroken == fresh.unbroken
        assert (mine.matches == fresh.matches).all()
    assert fork.mu == state.mu - len(draft)


def test_choosing_records_the_token() -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    state = DecodingState.of(params, (), 3)
    rows = [Row(params, position, state=state) for position in range(4)]
    chosen = [choose(torch.tensor([[2.5, 1.0, 0.0]]), [row])[0] for row in rows]
    assert chosen == [0, 1, 0, 0]
    assert state is not None
    assert state.tokens.tolist() == chosen


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0, top_k=3, xtc_probability=1.0)])
def test_no_state_is_kept_where_nothing_looks_back(params: SamplingParams) -> None:
    assert DecodingState.of(params, (1, 2), 5) is None


def test_logit_bias_does_not_bring_back_what_a_constraint_hides() -> None:
    params = SamplingParams(bad_words=((1,),), logit_bias=((1, 100.0), (2, 1.0)), temperature=0.0)
    seen: list[float] = []
    row = Row(params, 0, state=DecodingState.of(params, (), 3))
    choose(torch.zeros(1, 3), [row], lambda stage, _, __, after: seen.extend(after[0].tolist()) if not seen else None)
    assert seen == [0.0, HIDDEN, 1.0]
