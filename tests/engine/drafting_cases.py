"""Speculators for tests: over real drafters, and over the known truth. What they guess must never show in a result."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from backends import BACKENDS, Chosen
from engine_driver import Result, Ticks
from tiny_models import VOCAB_SIZE

from model.gpt import GPT
from server.engine.backend import decode_of
from server.engine.decoding import Decoding, Verification
from server.engine.drafting.draft_model import DraftModel
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.params import SamplingParams
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import DraftMethod, SequenceRequest, Speculation, StepStats

NUM_BLOCKS = 400
KINDS = {
    "greedy": SamplingParams(temperature=0.0, logprobs=2, ignore_eos=True),
    "warm": SamplingParams(temperature=0.8, logprobs=2),
    "penalties": SamplingParams(temperature=0.8, repetition_penalty=1.2, presence_penalty=0.5, logprobs=1),
}


def draft_model(
    model: GPT, num_blocks: int = NUM_BLOCKS, max_step_tokens: int = 512, backend: str | None = None
) -> DraftModel:
    clock = Ticks()
    runner = BACKENDS[backend or Chosen.name](model, num_blocks, clock)
    return DraftModel(runner, max_step_tokens, clock, decode=decode_of(runner))


def drafting_by(model: GPT, num_blocks: int = NUM_BLOCKS) -> DraftingSpeculator:
    return DraftingSpeculator(draft_model(model, num_blocks))


def speculating(requests: Iterable[SequenceRequest], method: DraftMethod, num_tokens: int = 4) -> list[SequenceRequest]:
    return [replace(request, speculation=Speculation(method, num_tokens)) for request in requests]


def prompt(length: int, seed: int) -> tuple[int, ...]:
    """Tokens from a small set, so that lookups find something."""
    return tuple(1 + (index * index + seed * index) % 7 for index in range(length))


def requests_of(kind: str, count: int = 4, max_tokens: int = 30) -> list[SequenceRequest]:
    return [
        SequenceRequest(id_, prompt(9 + 17 * id_, id_), replace(KINDS[kind], max_tokens=max_tokens, seed=100 + id_))
        for id_ in range(count)
    ]


class Oracle:
    """Drafts from known results: what comes, or `wrong` of it, which differs everywhere."""

    def __init__(self, truth: Mapping[int, Result], is_wrong: bool = False) -> None:
        self.truth = truth
        self.is_wrong = is_wrong
        self.num_verified = 0

    def num_wanted(self, sequence: EngineSequence) -> int:
        return sequence.request.speculation.num_tokens

    def draft(self, chunks: Iterable[Chunk], decodings: Mapping[int, Decoding]) -> Mapping[int, tuple[int, ...]]:
        return {chunk.sequence.request.id: self._guess(chunk) for chunk in chunks if chunk.num_drafts}

    def verified(self, verifications: Iterable[Verification]) -> None:
        self.num_verified += sum(bool(verification.drafts) for verification in verifications)

    def measured(self, stats: StepStats) -> StepStats:
        return stats

    def forget(self, sequence: EngineSequence) -> None:
        pass

    def _guess(self, chunk: Chunk) -> tuple[int, ...]:
        sequence = chunk.sequence
        coming = self.truth[sequence.request.id].tokens[sequence.num_outputs :][: chunk.num_drafts]
        return tuple((token + 1) % VOCAB_SIZE for token in coming) if self.is_wrong else tuple(coming)
