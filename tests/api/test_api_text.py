"""Tokens to text: whatever the bytes, the tokens, the steps and the stop strings."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pytest
from fake_engine import ByteTokenizer, logprob_of
from hypothesis import example, given
from hypothesis import strategies as st

from server.api.choice import Choice, ChoiceOptions, Delta
from server.api.detokenizer import IncrementalText
from server.api.stop_strings import StopScanner, StopStrings
from server.engine.types import FinishReason, SequenceOutput
from server.errors import EngineFailed

# Few letters, so that stop strings overlap themselves, each other and what is held back.
TEXT = st.text("abé\U0001f600", max_size=30)
STOPS = st.lists(st.text("abé\U0001f600", min_size=1, max_size=5), max_size=4)


@dataclass(frozen=True)
class TableTokenizer(ByteTokenizer):
    """Token i stands for table[i]."""

    table: tuple[bytes, ...]

    def token_bytes(self, id: int) -> bytes:
        return self.table[id]


def expected_end(text: str, stops: Sequence[str], armed_from: int = 0) -> tuple[int, str] | None:
    """The dumb rule: the first end of any stop string after `armed_from`, and the longest that ends there."""
    for end in range(armed_from + 1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


def steps_of(tokens: Sequence[int], cuts: Sequence[int]) -> list[SequenceOutput]:
    """`tokens` as the outputs of steps that end at `cuts`, with logprobs; the last one finishes."""
    bounds = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    groups = [tuple(tokens[start:end]) for start, end in itertools.pairwise(bounds)]
    outputs = [SequenceOutput(0, group, tuple(logprob_of(token, 1) for token in group)) for group in groups]
    return [*outputs, SequenceOutput(0, finish_reason="length")]


def run(choice: Choice, outputs: Sequence[SequenceOutput], take_every_step: bool) -> tuple[Delta, list[Delta]]:
    """All that the choice gave, joined, and the pieces."""
    pieces = []
    for output in outputs:
        choice.push(output)
        if take_every_step:
            pieces.append(choice.take())
        if choice.finish:
            break
    if not take_every_step:
        pieces.append(choice.take())
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Delta("".join(piece.text for piece in pieces), tokens, pieces[-1].finish, pieces[-1].stop_reason), pieces


@given(st.lists(st.binary(max_size=5)))
@example([b"\xf0\x9f", b"\x98", b"\x80"])
@example([b"\xe2\x82", b"("])
def test_pieces_joined_are_the_joined_bytes_decoded(tokens: list[bytes]) -> None:
    text = IncrementalText()
    joined = "".join([*map(text.push, tokens), text.finish()])
    assert joined == b"".join(tokens).decode("utf-8", "replace")
    assert text.length == len(joined)


def test_a_character_split_over_tokens_appears_once_it_is_whole() -> None:
    text = IncrementalText()
    assert [text.push(bytes([byte])) for byte in "é\U0001f600".encode()] == ["", "é", "", "", "", "\U0001f600"]
    assert text.finish() == ""


@given(TEXT, STOPS, st.lists(st.integers(0, 30)), st.booleans())
def test_a_scanner_stops_where_the_dumb_rule_does_however_the_text_arrives(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    scanner = StopScanner(StopStrings(stops), include)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = ""
    for start, end in itertools.pairwise(bounds):
        shown += scanner.push(text[start:end], armed=True)
        assert text.startswith(shown)
        if scanner.stopped_by is not None:
            break
    found = expected_end(text, stops)
    if found is None:
        assert scanner.stopped_by is None
        assert shown + scanner.finish() == text
    else:
        end, stop = found
        assert scanner.stopped_by == stop
        assert shown == text[: end if include else end - len(stop)]


def test_of_stop_strings_completed_together_the_longest_wins() -> None:
    scanner = StopScanner(StopStrings(["b", "aab", "ab"]), include=False)
    assert scanner.push("xaab", armed=True) == "x"
    assert scanner.stopped_by == "aab"


@given(TEXT, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    scanner = StopScanner(StopStrings(stops), include=False)
    shown = scanner.push(text, armed=False)
    held = max((size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)
    assert shown == text[: len(text) - held]


@given(st.data())
def test_streamed_equals_whole_equals_the_dumb_rule(data: st.DataObject) -> None:
    table = tuple(data.draw(st.lists(st.binary(max_size=3) | TEXT.map(str.encode), min_size=1, max_size=8)))
    tokens = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=20))
    stops = data.draw(STOPS)
    options = ChoiceOptions(StopStrings(stops), data.draw(st.booleans()), data.draw(st.integers(0, 5)))
    tokenizer = TableTokenizer(table)
    cuts = data.draw(st.lists(st.integers(0, 20)))
    whole, _ = run(Choice(tokenizer, options), steps_of(tokens, []), take_every_step=False)
    streamed, pieces = run(Choice(tokenizer, options), steps_of(tokens, cuts), take_every_step=True)
    assert streamed == whole
    assert all(piece.finish is None for piece in pieces[:-1])

    data_of = [table[token] for token in tokens]
    text = b"".join(data_of).decode("utf-8", "replace")
    decoder = IncrementalText()
    ends = [len(decoder.push(item)) for item in data_of]
    armed_from = sum(ends[: max(0, options.min_tokens - 1)])
    found = expected_end(text, stops, armed_from)
    # The replacement character that the end of the text makes of an unfinished one comes after every token.
    if found is not None and len(tokens) >= options.min_tokens:
        end, stop = found
        kept = end if options.include_stop else end - len(stop)
        assert (whole.text, whole.finish, whole.stop_reason) == (text[:kept], "stop", stop)
        offsets = [sum(ends[:index]) for index in range(len(tokens))]
        shown = [token for token, offset in zip(tokens, offsets, strict=True) if offset < kept]
        assert [token.id for token in whole.tokens] == shown
    else:
        assert (whole.text, whole.finish, whole.stop_reason) == (text, "length", None)
        assert [token.id for token in whole.tokens] == tokens


def test_tokens_of_a_cut_stop_string_are_cut_with_their_logprobs() -> None:
    choice = Choice(ByteTokenizer(), ChoiceOptions(StopStrings(["END"])))
    answer, _ = run(choice, steps_of(list(b"so ENTER ENDED"), [3, 4, 6, 10]), take_every_step=True)
    assert answer.text == "so ENTER "
    assert bytes(token.id for token in answer.tokens) == b"so ENTER "
    assert [token.offset for token in answer.tokens] == list(range(9))
    assert choice.num_tokens == len("so ENTER END")


def test_text_that_turns_out_to_be_no_stop_string_is_shown_at_the_end() -> None:
    choice = Choice(ByteTokenizer(), ChoiceOptions(StopStrings(["END"])))
    answer, pieces = run(choice, steps_of(list(b"so EN"), [3, 4]), take_every_step=True)
    assert [piece.text for piece in pieces] == ["so ", "", "", "EN"]
    assert len(answer.tokens) == 5


@pytest.mark.parametrize(("include", "text"), [(False, "abc"), (True, "abc;")])
def test_a_stop_tokens_text_is_shown_only_when_asked_for(include: bool, text: str) -> None:
    choice = Choice(ByteTokenizer(), ChoiceOptions(StopStrings([]), include))
    choice.push(SequenceOutput(0, tuple(b"abc;"), finish_reason="stop", stop_token=ord(";")))
    answer = choice.take()
    assert (answer.text, answer.finish, answer.stop_reason) == (text, "stop", ord(";"))
    assert len(answer.tokens) == len(text)
    assert choice.num_tokens == 4


@pytest.mark.parametrize("reason", get_args(FinishReason)[2:])
def test_a_sequence_that_could_not_be_finished_is_a_failure(reason: FinishReason) -> None:
    choice = Choice(ByteTokenizer(), ChoiceOptions(StopStrings([])))
    with pytest.raises(EngineFailed):
        choice.push(SequenceOutput(0, (97,), finish_reason=reason))
