"""Speculation broken on purpose, one slip at a time: a slice of the matrix must then find a difference.

Wrong drafts never change a token, so slips in the draft model's cache show only where the target drafts for itself.
"""

from collections.abc import Callable, Iterator, Sequence

import pytest
from speculation_cases import Batch, Source, batches
from speculation_runs import Laboratory, Tally, Truth
from torch import Tensor

import server.engine.core
from model.native.abi import NativeError
from server.engine.block_pool import BLOCK_SIZE
from server.engine.core import EngineCore
from server.engine.decoding import Decoding, Matcher, Verification
from server.engine.drafting.draft_cache import DraftCacheLedger
from server.engine.drafting.draft_model import DraftModel
from server.engine.sampler import Row
from server.engine.scheduler import Chunk, Scheduler
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import SequenceOutput, TokenLogprob
from server.engine.verify import describe_chosen

Slice = Callable[[], None]
Logprobs = tuple[TokenLogprob, ...]
# The matrix's own batches, by source: the first of them that shows the slip is enough.
SEEDS: dict[Source, Sequence[int]] = {"mixed": (3, 0, 1, 7), "itself": (3, 1, 0)}


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    laboratory = Laboratory()
    yield laboratory
    laboratory.close()


@pytest.fixture(scope="module")
def known(laboratory: Laboratory) -> dict[Source, list[tuple[Batch, Truth]]]:
    """The slices and what comes of them, worked out before anything is broken."""
    return {
        source: [(batch, laboratory.truth(batch)) for batch in batches(source, seeds)]
        for source, seeds in SEEDS.items()
    }


@pytest.fixture
def mixed(laboratory: Laboratory, known: dict[Source, list[tuple[Batch, Truth]]]) -> Slice:
    """Drafts that are right and wrong in turn."""
    return lambda: run(laboratory, known["mixed"])


@pytest.fixture
def itself(laboratory: Laboratory, known: dict[Source, list[tuple[Batch, Truth]]]) -> Slice:
    """The target as its own draft model."""
    return lambda: run(laboratory, known["itself"])


def run(laboratory: Laboratory, part: Sequence[tuple[Batch, Truth]]) -> None:
    for batch, truth in part:
        laboratory.check(batch, truth, Tally())


def test_nothing_differs_while_nothing_is_broken(mixed: Slice, itself: Slice) -> None:
    mixed()
    itself()


def test_control_history_one_token_behind(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two choices at a time by one history: the second does not know the first."""
    ready_rows = Verification.ready_rows

    def two_at_once(self: Verification) -> list[Row]:
        rows = ready_rows(self)
        two = len(rows) == 1 and self.decoding.matcher is None and len(self.tokens) < len(self.drafts)
        return [*rows, self.decoding.row(1)] if two else rows

    monkeypatch.setattr(Verification, "ready_rows", two_at_once)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_rejected_draft_stays_in_the_history(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Verification.keep

    def remembering(self: Verification, chosen: list[int]) -> bool:
        goes_on = keep(self, chosen)
        if self.decoding.state is not None and self.num_accepted < min(len(self.drafts), len(self.tokens)):
            self.decoding.state.append(self.drafts[self.num_accepted])
        return goes_on

    monkeypatch.setattr(Verification, "keep", remembering)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_mirostat_adjusted_once_per_step(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Verification.keep
    after_first: dict[int, float] = {}

    def as_after_the_first(self: Verification, chosen: list[int]) -> bool:
        state = self.decoding.state
        if state is not None:
            if not self.tokens:
                after_first[id(self)] = state.mu
            state.mu = after_first[id(self)]
        return keep(self, chosen)

    monkeypatch.setattr(Verification, "keep", as_after_the_first)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_grammar_advanced_once_per_step(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    completes = Verification._completes

    def only_the_first(self: Verification, matcher: Matcher, token: int) -> bool:
        return len(self.tokens) == 1 and completes(self, matcher, token)

    monkeypatch.setattr(Verification, "_completes", only_the_first)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_min_tokens_counted_once_per_step(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Decoding.row

    def early_as_the_first(self: Decoding, ahead: int) -> Row:
        return row(self, ahead)._replace(withheld=row(self, 0).withheld)

    monkeypatch.setattr(Decoding, "row", early_as_the_first)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_noise_of_the_first_position_for_all(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Decoding.row

    def at_the_first(self: Decoding, ahead: int) -> Row:
        return row(self, ahead)._replace(position=self.sequence.num_tokens)

    monkeypatch.setattr(Decoding, "row", at_the_first)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_stop_inside_an_accepted_run(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a step's last token ends a sequence."""
    append = Verification._append

    def blind_to_accepted_ends(self: Verification, token: int) -> None:
        endings = self.decoding.endings
        if len(self.tokens) < self.num_accepted:
            self.decoding.endings = frozenset()
        append(self, token)
        self.decoding.endings = endings

    monkeypatch.setattr(Verification, "_append", blind_to_accepted_ends)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_max_tokens_checked_between_steps(itself: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is reserved and tokens are taken as if the limit were far."""
    append, reserve = Verification._append, Scheduler._reserve_drafts

    def whole_run(self: Verification, token: int) -> None:
        append(self, token)
        if self.finish_reason == "length" and len(self.tokens) <= self.num_accepted:
            self.finish_reason = None

    def without_limit(self: Scheduler, chunks: list[Chunk], wanted: Callable[[EngineSequence], int]) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(EngineSequence, "num_remaining", property(lambda self: self.request.params.max_tokens))
            reserve(self, chunks, wanted)

    monkeypatch.setattr(Verification, "_append", whole_run)
    monkeypatch.setattr(Scheduler, "_reserve_drafts", without_limit)
    with pytest.raises(AssertionError, match="differs"):
        itself()


def test_control_logprobs_of_another_row(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of an accepted run, in another order."""

    def rotated(logits: Tensor, verifications: Sequence[Verification]) -> list[Logprobs]:
        logits = logits.clone()
        for one in verifications:
            run = slice(one.first_row, one.first_row + len(one.tokens))
            logits[run] = logits[run].roll(1, 0)
        return describe_chosen(logits, verifications)

    monkeypatch.setattr(server.engine.core, "describe_chosen", rotated)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_block_published_before_acceptance(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the hash of the right tokens, while the last place still holds what the rejected draft left there."""
    keep = EngineCore._keep

    def too_early(self: EngineCore, verification: Verification, logprobs: Logprobs) -> SequenceOutput:
        sequence = verification.decoding.sequence
        if verification.drafts:
            full = sequence.num_tokens // BLOCK_SIZE
            for block, content in zip(sequence.blocks, sequence.hashes(full), strict=False):
                self.scheduler.pool.publish(block, content)
        return keep(self, verification, logprobs)

    monkeypatch.setattr(EngineCore, "_keep", too_early)
    with pytest.raises(AssertionError, match="differs"):
        mixed()


def test_control_rejected_draft_counted_as_computed(mixed: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen instead of it then never gets keys and values of its own."""
    keep = EngineCore._keep

    def one_too_many(self: EngineCore, verification: Verification, logprobs: Logprobs) -> SequenceOutput:
        kept = keep(self, verification, logprobs)
        if kept.finish_reason is None and verification.num_accepted < len(verification.drafts):
            verification.decoding.sequence.num_computed += 1
        return kept

    monkeypatch.setattr(EngineCore, "_keep", one_too_many)
    # The native back end refuses such a span at once.
    with pytest.raises((AssertionError, NativeError), match=r"differs|a span has no tokens"):
        mixed()


def test_control_last_draft_missing_in_the_draft_cache(itself: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of a run that was accepted whole was chosen and never computed."""

    def all_of_them(self: DraftModel, verification: Verification) -> None:
        if verification.drafts:
            sequence = verification.decoding.sequence
            before = sequence.num_tokens - len(verification.tokens)
            self._ledger.advance(sequence, before + verification.num_accepted)

    monkeypatch.setattr(DraftModel, "verified", all_of_them)
    with pytest.raises(AssertionError, match=r"rejected \d+ right drafts"):
        itself()


def test_control_prefix_hit_believed_filled_by_the_draft_model(itself: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the target has in its cache need not be in the draft model's."""

    def trusting(self: DraftCacheLedger, sequence: EngineSequence, limit: int) -> None:
        hit = min(sequence.num_published, limit // BLOCK_SIZE) * BLOCK_SIZE
        sequence.num_draft_computed = max(sequence.num_draft_computed, hit)

    monkeypatch.setattr(DraftCacheLedger, "skip_filled", trusting)
    with pytest.raises(AssertionError, match=r"rejected \d+ right drafts"):
        itself()
