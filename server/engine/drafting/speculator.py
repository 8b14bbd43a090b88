"""Drafts for every sequence by the method its request names, and keeps count of what became of them.

Knows which drafters there are, and nothing of how they guess.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from server.engine.decoding import Decoding, Verification
from server.engine.drafting.acceptance import Acceptance
from server.engine.drafting.adaptive import Adaptive
from server.engine.drafting.draft_model import DraftModel
from server.engine.drafting.drafter import Drafter, Drafts
from server.engine.drafting.lookup import LookupDrafter
from server.engine.drafting.ngram import NgramIndex
from server.engine.drafting.suffix import SuffixIndex
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import MAX_DRAFT_TOKENS, DraftCounts, DraftMethod, StepStats

logger = logging.getLogger(__name__)


class DraftingSpeculator:
    """The Speculator of a serving engine. Without a draft model the method "draft" guesses nothing."""

    def __init__(self, draft_model: DraftModel | None = None) -> None:
        self._drafters: dict[DraftMethod, Drafter] = {
            "ngram": LookupDrafter(NgramIndex),
            "suffix": LookupDrafter(SuffixIndex),
        }
        self._acceptance = Acceptance()
        if draft_model is None:
            self._adaptive = Adaptive(["suffix"], {}, self._acceptance)
        else:
            self._drafters["draft"] = draft_model
            self._adaptive = Adaptive(["draft", "suffix"], {"draft": draft_model.pass_costs}, self._acceptance)
        self._has_failed = False
        self._counts: dict[DraftMethod, tuple[list[int], list[int]]] = {}  # drafted and accepted by place, this step
        self._drafted_by: dict[int, DraftMethod] = {}  # this step
        self._num_tokens = 0  # in this step

    def num_wanted(self, sequence: EngineSequence) -> int:
        speculation = sequence.request.speculation
        if speculation.method == "off":
            return 0
        if speculation.method == "auto":
            return min(self._adaptive.num_wanted(sequence), speculation.num_tokens)
        return speculation.num_tokens if speculation.method in self._drafters else 0

    def draft(self, chunks: Iterable[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        self._counts, self._drafted_by, self._num_tokens = {}, {}, 0
        by_method: dict[DraftMethod, list[Chunk]] = {}
        for chunk in chunks:
            self._num_tokens += chunk.length
            method = chunk.sequence.request.speculation.method
            if method == "auto":
                method = self._adaptive.method_for(chunk.sequence)
            if method in self._drafters and chunk.sequence.may_draft:
                by_method.setdefault(method, []).append(chunk)
        drafts: Drafts = {}
        for method, group in by_method.items():
            found = self._draft_by(method, group, decodings)
            self._drafted_by.update(dict.fromkeys(found, method))
            drafts.update(found)
        self._num_tokens += sum(map(len, drafts.values()))
        return drafts

    def verified(self, verifications: Iterable[Verification]) -> None:
        for verification in verifications:
            if not verification.drafts:
                continue
            id_ = verification.decoding.sequence.request.id
            method = self._drafted_by[id_]
            if method in self._drafters:
                self._drafters[method].verified(verification)
            num_checked = min(len(verification.drafts), len(verification.tokens))
            self._acceptance.record(method, id_, num_checked, verification.num_accepted)
            drafted, accepted = self._counts.setdefault(method, ([0] * MAX_DRAFT_TOKENS, [0] * MAX_DRAFT_TOKENS))
            for place in range(len(verification.drafts)):
                drafted[place] += 1
                accepted[place] += place < verification.num_accepted

    def measured(self, stats: StepStats) -> StepStats:
        self._adaptive.measured(stats, self._num_tokens)
        if not self._counts and not self._has_failed:
            return stats
        counts = (
            DraftCounts(method, tuple(drafted), tuple(accepted)) for method, (drafted, accepted) in self._counts.items()
        )
        return replace(stats, drafts=tuple(counts), has_draft_model_failed=self._has_failed)

    def forget(self, sequence: EngineSequence) -> None:
        if sequence.request.speculation.method != "off":
            self._acceptance.forget(sequence.request.id)
            for drafter in self._drafters.values():
                drafter.forget(sequence)

    def _draft_by(self, method: DraftMethod, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        drafter = self._drafters[method]
        if method != "draft":
            found = drafter.draft(chunks, decodings)
            for chunk in chunks:
                if chunk.num_drafts:
                    self._acceptance.record_asked(method, chunk.sequence.request.id in found)
            return found
        try:
            return drafter.draft(chunks, decodings)
        except (RuntimeError, ValueError, IndexError) as error:
            # What torch and the checks raise. Nobody's tokens depend on drafts: go on without.
            self._give_up_draft_model(error)
            return {}

    def _give_up_draft_model(self, error: Exception) -> None:
        logger.error("the draft model failed, it drafts no more: %s: %s", type(error).__name__, error)
        self._has_failed = True
        del self._drafters["draft"]
        self._adaptive.withdraw("draft")
