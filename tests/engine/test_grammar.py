"""Answers drawn under a grammar satisfy it, and masks allow exactly what can still become an answer."""

import contextlib
import itertools
import json
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jsonschema
import numpy as np
import pytest
from grammar_cases import REGEXES, random_schema
from llguidance import LLParserLimits
from numpy.typing import NDArray

from model.tokenizer import Tokenizer
from server.engine import grammar_source
from server.engine.grammar import GrammarCompiler, Matcher, allows
from server.engine.grammar_spec import CompilerError, Grammar, GrammarError
from server.engine.sampling.constraints import allowed_by

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
PADDING = 13  # rows of the embedding beyond the vocabulary
MAX_TOKENS = 400
SEEDS = range(3)

CHOICES = ["yes", "yes and no", r"a/b \d <>%#", "new\nline", '"quoted"', "é😀", " ", "start: x", "^$.*+?()[]{}|"]


@pytest.fixture(scope="module", params=["shakespeare-char", "shakespeare-gqa"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(CHECKPOINTS / request.param)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING)
    yield compiler
    compiler.close()


def allowed(matcher: Matcher, tokenizer: Tokenizer) -> list[int]:
    return np.flatnonzero(allowed_by(matcher.mask(), tokenizer.vocab_size + PADDING)).tolist()


def may_end(matcher: Matcher, tokenizer: Tokenizer) -> bool:
    return any(allows(matcher.mask(), token) for token in tokenizer.eos_token_ids)


def drawn(matcher: Matcher, tokenizer: Tokenizer, seed: int) -> list[int] | None:
    """The tokens of an answer from random logits that lean towards closing what is open; None when it does not end."""
    rng = np.random.default_rng(seed)
    closing = [any(byte in b'"]}' for byte in tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    tokens: list[int] = []
    for _ in range(MAX_TOKENS):
        if matcher.is_finished():
            return tokens
        candidates = allowed(matcher, tokenizer)
        token = max(candidates, key=lambda t: rng.gumbel() + 5.0 * closing[t] + 3.0 * (t in tokenizer.eos_token_ids))
        matcher.accept(token)
        if token in tokenizer.eos_token_ids:
            assert matcher.is_finished()
            return tokens
        tokens.append(token)
    return None


def text_of(tokens: list[int], tokenizer: Tokenizer) -> str:
    return b"".join(map(tokenizer.token_bytes, tokens)).decode()


def test_finished_answers_validate_against_a_hundred_schemas(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    unfinished = 0
    for _ in range(100):
        schema = {**random_schema(rng, 3), "$defs": {"leaf": {"type": ["integer", "null"]}}}
        grammar = Grammar("json_schema", json.dumps(schema))
        for seed in SEEDS:
            tokens = drawn(compiler.start(grammar).result(), tokenizer, seed)
            unfinished += tokens is None
            if tokens is not None:
                jsonschema.validate(json.loads(text_of(tokens, tokenizer)), schema, jsonschema.Draft202012Validator)
    assert unfinished <= 15  # of 300


def test_finished_answers_match_their_regex(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    assert len(REGEXES) >= 50
    unfinished = 0
    for regex, seed in itertools.product(REGEXES, SEEDS):
        tokens = drawn(compiler.start(Grammar("regex", regex)).result(), tokenizer, seed)
        unfinished += tokens is None
        if tokens is not None:
            text = text_of(tokens, tokenizer)
            assert re.fullmatch(regex, text), (regex, text)
    assert unfinished <= 10


def test_every_choice_can_be_given_and_nothing_else(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = Grammar("choice", json.dumps(CHOICES))
    for choice in CHOICES:
        matcher = compiler.start(grammar).result()
        for token in tokenizer.encode(choice, add_special_tokens=False):
            matcher.accept(token)
        assert may_end(matcher, tokenizer), choice
    for seed in range(20):
        tokens = drawn(compiler.start(grammar).result(), tokenizer, seed)
        assert tokens is not None
        assert text_of(tokens, tokenizer) in CHOICES


def test_lark_and_gbnf_say_the_same(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    lark = compiler.start(Grammar("grammar", 'start: "thou " verb+\nverb: "art" | "wert"')).result()
    gbnf = compiler.start(Grammar("grammar", 'root ::= "thou " verb+\nverb ::= "art" | "wert"')).result()
    for token in tokenizer.encode("thou artwertart", add_special_tokens=False):
        assert allowed(lark, tokenizer) == allowed(gbnf, tokenizer)
        lark.accept(token)
        gbnf.accept(token)
    assert may_end(lark, tokenizer)
    assert may_end(gbnf, tokenizer)


def test_masks_allow_exactly_what_can_still_become_an_answer(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    parts = [("O", "But"), (" ", ", "), ("the", "thee", "then"), ("", " king", " kiné"), ("", "!")]
    regex = "".join(f"({'|'.join(part)})" for part in parts)
    language = {"".join(words).encode() for words in itertools.product(*parts)}
    prefixes = {text[:length] for text in language for length in range(len(text) + 1)}
    num_tokens = tokenizer.vocab_size + PADDING
    for seed in range(20):
        matcher = compiler.start(Grammar("regex", regex)).result()
        rng, text = random.Random(seed), b""
        while not matcher.is_finished():
            texts = [tokenizer.token_bytes(token) for token in range(num_tokens)]
            expected = {token for token, piece in enumerate(texts) if piece and text + piece in prefixes}
            expected |= set(tokenizer.eos_token_ids) if text in language else set()
            assert set(allowed(matcher, tokenizer)) == expected
            assert may_end(matcher, tokenizer) == (text in language)
            token = rng.choice(sorted(expected - set(tokenizer.eos_token_ids)))
            matcher.accept(token)
            text += texts[token]
        assert text in language
        assert set(allowed(matcher, tokenizer)) == set(tokenizer.eos_token_ids)


def test_looking_ahead_shows_the_masks_of_the_way_and_changes_nothing(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": [1, 23, "four"]}}))
    rng, num_seen = random.Random(1), 0
    for _ in range(5):
        plain, looking = compiler.start(grammar).result(), compiler.start(grammar).result()
        tokens: list[int] = []
        while not plain.is_finished():
            drafts, expected = way_ahead(begun(compiler, grammar, tokens), tokenizer, rng)
            refused = rng.choice(sorted(set(range(tokenizer.vocab_size)) - set(expected[-1])))
            masks = masks_ahead(looking, [*drafts, refused])
            assert [np.flatnonzero(allowed_by(mask, tokenizer.vocab_size)).tolist() for mask in masks] == expected
            num_seen += len(drafts)
            tokens.append(rng.choice([t for t in allowed(plain, tokenizer) if t not in tokenizer.eos_token_ids]))
            plain.accept(tokens[-1])
            looking.accept(tokens[-1])
    assert num_seen > 20


def begun(compiler: GrammarCompiler, grammar: Grammar, tokens: list[int]) -> Matcher:
    matcher = compiler.start(grammar).result()
    for token in tokens:
        matcher.accept(token)
    return matcher


def masks_ahead(matcher: Matcher, drafts: list[int]) -> list[NDArray[np.int32]]:
    """The masks here and after each of the drafts, as far as the grammar and its limits allow."""
    masks = [matcher.mask()]
    with contextlib.suppress(GrammarError):
        scout = matcher.scout()
        for token in itertools.takewhile(lambda draft: allows(masks[-1], draft), drafts):
            scout.accept(token)
            masks.append(scout.mask())
    return masks


def way_ahead(matcher: Matcher, tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], list[list[int]]]:
    """Some allowed tokens, and what is allowed before, between and after them."""
    drafts, expected = [], [allowed(matcher, tokenizer)]
    for _ in range(rng.randrange(5)):
        drafts.append(rng.choice(allowed(matcher, tokenizer)))
        matcher.accept(drafts[-1])
        expected.append(allowed(matcher, tokenizer))
    return drafts, expected


def test_a_scout_and_its_matcher_leave_each_other_alone(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.start(Grammar("regex", "(yes|no)+")).result()
    matcher.accept(tokenizer.encode("y")[0])
    before = allowed(matcher, tokenizer)
    for _ in range(2):
        scout = matcher.scout()
        assert allowed(scout, tokenizer) == before
        scout.accept(tokenizer.encode("e")[0])
        assert allowed(matcher, tokenizer) == before != allowed(scout, tokenizer)


def test_a_limit_strikes_at_the_same_token_whatever_was_drafted(
    compiler: GrammarCompiler, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = LLParserLimits(max_lexer_states=200, step_lexer_fuel=20_000, verbose_errors=False)
    monkeypatch.setattr(grammar_source, "parser_limits", lambda: tight)
    grammar = Grammar("regex", "(" + "|".join(f".*[ae].{{{n}}}" for n in range(1, 60)) + ")y")

    def num_accepted(num_drafts: int, asks_for_masks: bool) -> int:
        matcher, rng = compiler.start(grammar).result(), random.Random(num_drafts)
        for count, token in enumerate(tokenizer.encode("era of the sea " * 20, add_special_tokens=False)):
            try:
                masks_ahead(matcher, [rng.choice(allowed(matcher, tokenizer)) for _ in range(num_drafts)])
                if asks_for_masks:
                    matcher.mask()
                matcher.accept(token)
            except GrammarError:
                return count
        return MAX_TOKENS

    counts = {num_accepted(drafts, asks) for drafts in (0, 1, 4) for asks in (True, False)}
    assert len(counts) == 1
    assert 0 < counts.pop() < MAX_TOKENS


def test_what_no_token_of_the_vocabulary_can_begin_is_refused() -> None:
    class Letters:
        vocab_size = 2
        eos_token_ids = (1,)

        def token_bytes(self, id: int) -> bytes:
            return b"a" if id == 0 else b""

    compiler = GrammarCompiler(Letters(), 2)
    try:
        assert compiler.start(Grammar("regex", "a")).result().mask().tolist() == [1]
        with pytest.raises(GrammarError, match="satisfied"):
            compiler.start(Grammar("regex", "b")).result()
    finally:
        compiler.close()


def test_a_grammar_given_up_before_its_turn_is_not_compiled(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, tried = threading.Event(), []

    def slowly(grammar: Grammar) -> str:
        may_go_on.wait(60.0)
        tried.append(grammar.text)
        raise GrammarError("no")

    monkeypatch.setattr(compiler.probe, "to_source", slowly)
    pending = [compiler.start(Grammar("regex", f"given up {index}")) for index in range(3)]
    pending[1].cancel()
    may_go_on.set()
    for one in (pending[0], pending[2]):
        with pytest.raises(GrammarError):
            one.result()
    assert tried == ["given up 0", "given up 2"]


class Panic(BaseException):
    """As PyO3 raises where Rust code panics."""


@pytest.mark.parametrize("failure", [OSError(12, "Cannot allocate memory"), Panic("index out of bounds")])
def test_a_failure_of_the_compiler_is_no_fault_of_the_grammar(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise failure

    compiler.probe.close()
    with monkeypatch.context() as broken:
        broken.setattr(subprocess, "Popen", fail)
        with pytest.raises(CompilerError):
            compiler.start(Grammar("regex", f"fails {failure}")).result()
    assert compiler.start(Grammar("regex", f"fails {failure}")).result().mask().any()


def test_a_matcher_that_has_been_waited_for_is_there(compiler: GrammarCompiler) -> None:
    pending = compiler.start(Grammar("regex", "in time"))
    pending.wait(60.0)
    assert pending.done()
    assert not pending.result().is_finished()
