"""Structured output through the whole engine: answers that finish satisfy their grammar, drafted ahead or not."""

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import jsonschema
import pytest
import torch
from backends import natively_only, new_choose, new_runner
from drafting_cases import NUM_BLOCKS, drafting_by
from engine_driver import Result, Run, decode, drain, engine_info
from grammar_cases import REGEXES, random_schema

from model.checkpoint import load_checkpoint
from model.tokenizer import Tokenizer
from server.engine.block_pool import BlockPool
from server.engine.core import EngineCore
from server.engine.grammar import GrammarCompiler
from server.engine.grammar_probe import GrammarProbe
from server.engine.grammar_spec import Grammar
from server.engine.params import SamplingParams
from server.engine.parts import Parts
from server.engine.scheduler import Scheduler
from server.engine.selfcheck import make_exact
from server.engine.types import SequenceRequest, Speculation

pytestmark = natively_only
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
TARGET, DRAFT = CHECKPOINTS / "shakespeare-char", CHECKPOINTS / "shakespeare-draft"
SCHEMAS = [json.dumps(random_schema(random.Random(seed), 2)) for seed in range(100)]
DEFINITIONS = {"leaf": {"type": "boolean"}}
GRAMMARS = [
    *(Grammar("json_schema", json.dumps({**json.loads(schema), "$defs": DEFINITIONS})) for schema in SCHEMAS),
    *(Grammar("regex", regex) for regex in REGEXES[:50]),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TARGET)


@pytest.fixture(scope="module")
def core(tokenizer: Tokenizer, backend: str) -> Iterator[EngineCore]:
    """The shipped model with its draft."""
    target, draft = (load_checkpoint(folder, torch.float32, torch.device("cpu")) for folder in (TARGET, DRAFT))
    for model in (target, draft):
        make_exact(model, 512, allow_inexact=False)
    compiler = GrammarCompiler(tokenizer, target.config.vocab_size)
    info = engine_info(target.config.vocab_size, target.config.context_length, NUM_BLOCKS, tokenizer.eos_token_ids)
    scheduler = Scheduler(BlockPool(NUM_BLOCKS), 64, 512)
    runner, speculator = new_runner(target, NUM_BLOCKS, time.monotonic), drafting_by(draft)
    yield EngineCore(info, runner, scheduler, time.monotonic, Parts(speculator, compiler.start, new_choose()))
    compiler.close()


def requests(tokenizer: Tokenizer, grammars: list[tuple[int, Grammar]]) -> list[SequenceRequest]:
    """Every other one greedy; all lean towards closing what is open, or a weak model would seldom finish."""
    closing = tuple((tokenizer.encode(sign)[0], 4.0) for sign in '"]}')
    params = SamplingParams(max_tokens=150, logit_bias=closing)
    prompt = tuple(tokenizer.encode("ROMEO:\n"))
    return [
        SequenceRequest(id_, prompt, replace(params, seed=id_, temperature=id_ % 2), grammar=grammar)
        for id_, grammar in grammars
    ]


def satisfies(grammar: Grammar, text: str) -> bool:
    if grammar.kind == "regex":
        return re.fullmatch(grammar.text, text) is not None
    return jsonschema.validators.validator_for(json.loads(grammar.text))(json.loads(grammar.text)).is_valid(
        json.loads(text)
    )


def text_of(result: Result, tokenizer: Tokenizer) -> str:
    tokens = result.tokens[: -1 if result.stop_token is not None else None]
    return b"".join(map(tokenizer.token_bytes, tokens)).decode()


def compare(core: EngineCore, tokenizer: Tokenizer, grammars: list[tuple[int, Grammar]]) -> Iterator[Run]:
    """Decode the same requests without and with drafts, check both, and yield both runs."""
    plain = requests(tokenizer, grammars)
    runs = [
        decode(core, [replace(request, speculation=Speculation(method, 4)) for request in plain])
        for method in ("off", "draft")
    ]
    assert runs[0].results == runs[1].results
    finished = [request for request in plain if runs[0].results[request.id].finish_reason == "stop"]
    for request in finished:
        assert request.grammar is not None
        text = text_of(runs[0].results[request.id], tokenizer)
        assert satisfies(request.grammar, text), (request.grammar, text)
    assert len(finished) > 0.7 * len(plain), "hardly any answer finishes: nothing was shown"
    assert {result.finish_reason for result in runs[0].results.values()} <= {"stop", "length"}
    yield from runs


def num_accepted(run: Run) -> int:
    return sum(output.num_accepted for output in run.outputs)


def test_finished_answers_satisfy_their_grammars_drafted_or_not(core: EngineCore, tokenizer: Tokenizer) -> None:
    off, drafted = compare(core, tokenizer, list(enumerate(GRAMMARS)))
    assert num_accepted(off) == 0
    assert num_accepted(drafted) > 500


def test_a_grammar_that_cannot_be_satisfied_ends_its_sequence_alone(core: EngineCore, tokenizer: Tokenizer) -> None:
    healthy, sick = requests(tokenizer, [(1, Grammar("regex", "[a-z]{5}")), (2, Grammar("json_schema", "false"))])
    results = decode(core, [sick, healthy]).outputs
    (failure,) = [output for output in results if output.id == 2]
    assert (failure.finish_reason, failure.blames_grammar) == ("error", True)
    assert sum(len(output.tokens) for output in results if output.id == 1) == 5


def test_a_compiler_that_fails_ends_its_sequence_alone_and_blames_nobody(
    core: EngineCore, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GrammarProbe, grammar: Grammar) -> NoReturn:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(GrammarProbe, "to_source", fail)
    (sick,) = requests(tokenizer, [(3, Grammar("regex", "never tried before"))])
    (healthy,) = requests(tokenizer, [(4, Grammar("regex", "[a-z]{5}"))])
    outputs = decode(core, [sick, replace(healthy, grammar=None)]).outputs
    (failure,) = [output for output in outputs if output.id == 3]
    assert (failure.finish_reason, failure.blames_grammar) == ("error", False)
    assert "could not be compiled" in failure.error
    assert sum(len(output.tokens) for output in outputs if output.id == 4) > 0


def test_an_aborted_sequence_takes_its_grammar_with_it(core: EngineCore, tokenizer: Tokenizer) -> None:
    asked = requests(tokenizer, [(id_, Grammar("regex", f"{id_}[a-z]+")) for id_ in range(5, 8)])
    for request in asked:
        core.add(request)
    core.abort([5, 6])
    outputs = drain(core).outputs
    assert {output.id for output in outputs if output.finish_reason == "abort"} == {5, 6}
    assert all(output.id == 7 for output in outputs if output.tokens)
    assert not core._compiling


def test_ignoring_the_end_of_sequence_still_ends_with_the_grammar(core: EngineCore, tokenizer: Tokenizer) -> None:
    (plain,) = requests(tokenizer, [(0, Grammar("regex", "[a-z]{3,6}"))])
    ignoring = replace(plain, params=replace(plain.params, ignore_eos=True, min_tokens=4))
    result = decode(core, [ignoring]).results[0]
    assert (result.finish_reason, result.stop_token) == ("stop", None)
    assert re.fullmatch("[a-z]{6}", text_of(result, tokenizer))
