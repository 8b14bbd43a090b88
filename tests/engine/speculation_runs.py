"""Runs generated batches with and without speculation, and says what differs. Knows no strategy."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from backends import BACKENDS, choose_on
from drafting_cases import draft_model
from engine_driver import EOS, Result, Run, Ticks, drain, engine_info, preempt
from speculation_cases import Batch, Case, follow_ups
from tiny_models import FAMILIES, GQA, tiny_model

from model.checkpoint import load_checkpoint
from model.gpt import GPT
from model.tokenizer import Tokenizer
from server.engine.block_pool import BLOCK_SIZE, BlockPool
from server.engine.core import EngineCore
from server.engine.decoding import Decoding, Verification
from server.engine.drafting.costs import CostCurve
from server.engine.drafting.draft_model import DraftModel
from server.engine.drafting.drafter import Drafts
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.grammar import GrammarCompiler, PendingMatcher
from server.engine.grammar_spec import Grammar
from server.engine.parts import Parts
from server.engine.scheduler import Chunk, Scheduler
from server.engine.selfcheck import make_exact
from server.engine.sequence import Sequence as EngineSequence
from server.engine.speculation import NoSpeculation, Speculator
from server.engine.types import SequenceRequest

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_ROOMY = (400, 64, 512)  # blocks, running, tokens per step


class Letters:
    """The tiny models' vocabulary, for grammars: the ending token, then ASCII from the space on."""

    vocab_size = GQA.vocab_size
    eos_token_ids = (EOS,)

    def token_bytes(self, id: int) -> bytes:
        return bytes([31 + id]) if id else b""


class KnownTruth:
    """Drafts what is known to come, spoiled wherever its kind says so, by the sequence's id and the place in it."""

    def __init__(self, truth: Mapping[int, Result], kind: str, vocab_size: int) -> None:
        self.pass_costs = CostCurve()
        self._truth = truth
        self._kind = kind
        self._vocab_size = vocab_size

    def draft(self, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        return {chunk.sequence.request.id: self._guess(chunk) for chunk in chunks if chunk.num_drafts}

    def verified(self, verification: Verification) -> None:
        pass

    def forget(self, sequence: EngineSequence) -> None:
        pass

    def _guess(self, chunk: Chunk) -> tuple[int, ...]:
        id_, first = chunk.sequence.request.id, chunk.sequence.num_outputs
        coming = self._truth[id_].tokens[first : first + chunk.num_drafts]
        if self._kind == "mixed":  # and beyond the end of the text, as a drafter may that does not know it
            coming = coming + [5] * (chunk.num_drafts - len(coming))
        return tuple(
            token if self._is_right(id_, first + ahead) else (token + 1) % self._vocab_size
            for ahead, token in enumerate(coming)
        )

    def _is_right(self, id_: int, place: int) -> bool:
        return self._kind == "right" or (self._kind == "mixed" and (31 * id_ + place * place) % 5 != 0)


@dataclass
class Tally:
    """What became of the drafts of many cases, by drafter."""

    num_cases: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    num_preemptions: int = 0
    num_cached: int = 0

    def add(self, cases: Iterable[Case], run: Run) -> None:
        drafter_of = {case.request.id: case.drafter for case in cases if case.speculates}
        self.num_cases += len(drafter_of)
        for output in run.outputs:
            if output.id in drafter_of:
                self.drafted[drafter_of[output.id]] += output.num_drafted
                self.accepted[drafter_of[output.id]] += output.num_accepted
        self.num_preemptions += sum(stats.num_preemptions for stats in run.stats)
        self.num_cached += sum(stats.num_prefix_hit_tokens for stats in run.stats)


@dataclass(frozen=True)
class Truth:
    """A batch's two turns and their results without speculation."""

    cases: tuple[Case, ...]
    more: tuple[Case, ...]
    results: Mapping[int, Result]


class Laboratory:
    """The models and grammars of all batches, made when first needed. `close` it."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, bool], GPT] = {}
        self._compilers: dict[bool, GrammarCompiler] = {}

    def close(self) -> None:
        for compiler in self._compilers.values():
            compiler.close()

    def truth(self, batch: Batch) -> Truth:
        """Decode the batch without speculation, in a core with room for everybody."""
        said = drain(self._filled(batch, batch.cases, self._core(batch, _ROOMY, NoSpeculation()))).results
        more = follow_ups(batch, said)
        heard = drain(self._filled(batch, more, self._core(batch, _ROOMY, NoSpeculation()))).results
        return Truth(batch.cases, more, {**said, **heard})

    def check(self, batch: Batch, truth: Truth, tally: Tally) -> None:
        """Decode the batch with speculation in its surroundings; both turns must come to the truth."""
        around = batch.surroundings
        limits = (around.num_blocks, around.max_running, around.max_step_tokens)
        core = self._core(batch, limits, self._speculator(batch, truth))
        for turn, cases in enumerate((truth.cases, truth.more)):
            run = _drain_disturbed(core, batch, cases, turn)
            assert not any(stats.has_draft_model_failed for stats in run.stats), "the draft model failed"
            _compare(cases, truth, run)
            tally.add(cases, run)
        assert core.scheduler.pool.num_available == around.num_blocks, "a block is still referenced"

    def _filled(self, batch: Batch, cases: Iterable[Case], core: EngineCore) -> EngineCore:
        for case in cases:
            core.add(case.request)
        return core

    def _core(self, batch: Batch, limits: tuple[int, int, int], speculator: Speculator) -> EngineCore:
        model = self._model(batch.family, batch.is_bfloat16)
        num_blocks, max_running, max_step_tokens = limits
        context_length = min(model.config.context_length, num_blocks * BLOCK_SIZE)
        scheduler = Scheduler(BlockPool(num_blocks), max_running, max_step_tokens)
        clock = Ticks()
        compiler = self._compiler(batch)

        def compiled(grammar: Grammar) -> PendingMatcher:
            pending = compiler.start(grammar)
            pending.wait(60.0)
            return pending

        info = engine_info(model.config.vocab_size, context_length, num_blocks)
        runner = BACKENDS[_backend(batch)](model, num_blocks, clock)
        return EngineCore(info, runner, scheduler, clock, Parts(speculator, compiled, choose_on(_backend(batch))))

    def _speculator(self, batch: Batch, truth: Truth) -> DraftingSpeculator:
        if batch.source in ("right", "wrong", "mixed"):
            known = KnownTruth(truth.results, batch.source, batch.vocab_size)
            return DraftingSpeculator(cast(DraftModel, known))
        family = batch.family if batch.source == "itself" else f"draft of {batch.source}"
        model = self._model(family, batch.is_bfloat16)
        around = batch.surroundings
        return DraftingSpeculator(draft_model(model, around.num_blocks, around.max_step_tokens, _backend(batch)))

    def _model(self, family: str, is_bfloat16: bool) -> GPT:
        key = (family, is_bfloat16)
        if key not in self._models:
            self._models[key] = _load(family, torch.bfloat16 if is_bfloat16 else torch.float32)
        return self._models[key]

    def _compiler(self, batch: Batch) -> GrammarCompiler:
        is_trained = batch.source == "trained"
        if is_trained not in self._compilers:
            table = Tokenizer.load(CHECKPOINTS / "shakespeare-char") if is_trained else Letters()
            self._compilers[is_trained] = GrammarCompiler(table, batch.vocab_size)
        return self._compilers[is_trained]


def _backend(batch: Batch) -> str:
    """Half of the batches on each, of every source and shape."""
    return "torch" if (batch.seed // 2 + len(batch.source)) % 2 else "native"


def _load(family: str, dtype: torch.dtype) -> GPT:
    shipped = {"trained": "shakespeare-char", "draft of trained": "shakespeare-draft"}
    if family in shipped:
        model = load_checkpoint(CHECKPOINTS / shipped[family], dtype, torch.device("cpu"))
        make_exact(model, 512, allow_inexact=False)
        return model
    if family == "draft of random":
        return tiny_model(replace(GQA, num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1), dtype, seed=5)
    return tiny_model(FAMILIES[family], dtype)


def _drain_disturbed(core: EngineCore, batch: Batch, cases: Sequence[Case], turn: int) -> Run:
    """Requests arrive, and somebody is preempted, before steps that the batch's seed chooses."""
    around = batch.surroundings
    rng = random.Random(2 * batch.seed + turn)
    arrivals: dict[int, list[SequenceRequest]] = {}
    for case in cases:
        arrivals.setdefault(rng.randrange(around.arrival_steps), []).append(case.request)

    def disturb(core: EngineCore, step: int) -> None:
        for request in arrivals.get(step, ()):
            core.add(request)
        if core.scheduler.running and rng.random() < around.preemption:
            preempt(core, rng.randrange(len(core.scheduler.running)))

    return drain(core, disturb, more_until=around.arrival_steps)


def _compare(cases: Iterable[Case], truth: Truth, run: Run) -> None:
    drafted, accepted = Counter[int](), Counter[int]()
    for output in run.outputs:
        drafted[output.id] += output.num_drafted
        accepted[output.id] += output.num_accepted
    for case in cases:
        id_ = case.request.id
        result, expected = run.results.get(id_), truth.results[id_]
        assert result == expected, f"{case.name} differs: {result} instead of {expected}"
        # The target by itself is not always right about a guided sequence.
        if case.drafter == "right" or (case.drafter == "itself" and case.request.guidance is None):
            assert accepted[id_] == drafted[id_], f"{case.name} rejected {drafted[id_] - accepted[id_]} right drafts"
        if case.drafter == "wrong":
            assert accepted[id_] == 0, f"{case.name} accepted {accepted[id_]} wrong drafts"
