"""A small model drafts: it has a cache of its own under the target's block tables, and runs k passes for k drafts.

Every draft is chosen as the target would choose it, with the sequence's own parameters, history, seed and position, so
that the same noise decides (coupling by common randomness, Daliri et al. 2025). Schedules nothing.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from torch import Tensor

from model.native.native_model import Limit
from model.paged import Span
from server.engine.decoding import Decoding, Verification
from server.engine.drafting.costs import CostCurve
from server.engine.drafting.draft_cache import DraftCacheLedger
from server.engine.drafting.drafter import Drafts
from server.engine.grammar_spec import GrammarError
from server.engine.multi_step import Decode, draws_of
from server.engine.runner import Runner
from server.engine.sampler import Row
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence as EngineSequence
from server.engine.verify import Choose, choose_by_torch


class DraftNotFiniteError(RuntimeError):
    """The draft model's numbers are not finite: its weights are damaged."""


@dataclass
class _Ahead:
    """A sequence that is being drafted for: what chooses its tokens, as if the drafts had been accepted."""

    decoding: Decoding  # a rehearsal
    num_wanted: int
    drafts: list[int] = field(default_factory=list)
    is_over: bool = False

    def row(self) -> Row | None:
        """What chooses the next draft; None when its grammar gives up, and drafting with it."""
        try:
            return self.decoding.row(len(self.drafts))
        except GrammarError:
            self.is_over = True
            return None

    def keep(self, token: int) -> None:
        self.drafts.append(token)
        matcher = self.decoding.matcher
        # Nothing follows an ending token: no need to guess on.
        self.is_over = len(self.drafts) == self.num_wanted or token in self.decoding.endings
        if matcher is None or self.is_over:
            return
        try:
            matcher.accept(token)
            self.is_over = matcher.is_finished()
        except GrammarError:
            self.is_over = True

    def span(self) -> Span:
        """The latest draft, as the draft model is to compute it."""
        sequence = self.decoding.sequence
        return Span(sequence.num_tokens + len(self.drafts) - 1, 1, sequence.blocks)


class DraftModel:
    """Drafts for many sequences at once. `pass_costs` are the seconds of one pass by the tokens in it.

    `Sequence.num_draft_computed` counts the leading tokens whose keys and values are in the draft model's cache. Before
    a sequence drafts it must have caught up: with its prompt, with tokens it got while not drafting, and with the last
    draft of a fully accepted run, which was never computed.
    """

    def __init__(
        self,
        runner: Runner,
        max_step_tokens: int,
        clock: Callable[[], float],
        choose: Choose = choose_by_torch,
        decode: Decode | None = None,
    ) -> None:
        """`decode` makes several passes in one call, where the runner can."""
        self.pass_costs = CostCurve()
        self._decode = decode
        self._runner = runner
        self._max_step_tokens = max_step_tokens
        self._context_length = runner.config.context_length
        self._clock = clock
        self._choose = choose
        self._ledger = DraftCacheLedger()

    def draft(self, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        """Raises DraftNotFiniteError, and RuntimeError and its like from the model."""
        started = self._catch_up(chunks, decodings)
        going = started
        while going := [ahead for ahead in going if not ahead.is_over]:
            if not self._run_in_a_row(going):
                self._run([ahead.drafts[-1] for ahead in going], self._spans(going, 1), range(len(going)), going)
        return {ahead.decoding.sequence.request.id: tuple(ahead.drafts) for ahead in started if ahead.drafts}

    def verified(self, verification: Verification) -> None:
        """Accepted drafts are in the cache, but for the last of all: it was chosen and never computed."""
        if verification.drafts:
            sequence = verification.decoding.sequence
            before = sequence.num_tokens - len(verification.tokens)
            num_right = min(verification.num_accepted, len(verification.drafts) - 1)
            self._ledger.advance(sequence, before + num_right)

    def forget(self, sequence: EngineSequence) -> None:
        """Its blocks keep what they hold, for those who find them in the prefix cache."""

    def _catch_up(self, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> list[_Ahead]:
        """Compute what the cache lacks of the chunks' sequences; those that lack no more get their first draft.

        Shortest first within the budget of one pass, so that nobody's drafts wait for another's prompt.
        """
        tokens: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        ready: list[_Ahead] = []
        for length, chunk in sorted(((self._num_missing(chunk), chunk) for chunk in chunks), key=itemgetter(0)):
            length = min(length, self._max_step_tokens - len(tokens))
            if not length:
                continue
            sequence, start = chunk.sequence, chunk.sequence.num_draft_computed
            self._ledger.overwrite(sequence, start, start + length)
            self._ledger.advance(sequence, start + length)
            spans.append(Span(start, length, sequence.blocks))
            tokens += sequence.tokens[start : start + length]
            if chunk.num_drafts and start + length == sequence.num_tokens:
                with contextlib.suppress(GrammarError):  # its grammar does not look ahead: no drafts
                    ready.append(_Ahead(decodings[sequence.request.id].rehearsal(), self._room(chunk)))
                    rows.append(len(tokens) - 1)
        if tokens:
            self._run(tokens, spans, rows, ready)
        return ready

    def _num_missing(self, chunk: Chunk) -> int:
        """Tokens up to the chunk's end that are not in the cache, and fit into the draft model's context."""
        self._ledger.skip_filled(chunk.sequence, chunk.end - 1)
        return max(0, min(chunk.end, self._context_length) - chunk.sequence.num_draft_computed)

    def _room(self, chunk: Chunk) -> int:
        """How many drafts the chunk may have: the last is not computed and may stand just behind the context."""
        return min(chunk.num_drafts, self._context_length + 1 - chunk.sequence.num_tokens)

    def _run(
        self, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int], deciding: Sequence[_Ahead]
    ) -> None:
        """One pass; row rows[i] of its logits chooses the next draft of deciding[i]."""
        started = self._clock()
        result = self._runner.run(tokens, spans, rows)
        # With every hidden state finite a logit may still overflow.
        if not (all(result.is_finite) and result.logits.sum(-1).isfinite().all()):
            raise DraftNotFiniteError("its numbers are not finite")
        self._decide(result.logits, deciding)
        self.pass_costs.record(len(tokens), self._clock() - started)

    def _spans(self, going: Sequence[_Ahead], num_passes: int) -> list[Span]:
        """Of the latest drafts, which so many passes will compute, and those behind them."""
        spans = [ahead.span() for ahead in going]
        for ahead, span in zip(going, spans, strict=True):
            self._ledger.overwrite(ahead.decoding.sequence, span.start, span.start + num_passes)
        return spans

    def _run_in_a_row(self, going: Sequence[_Ahead]) -> bool:
        """As many passes as everybody wants drafts, in one call; False where there is none that chooses as they do."""
        num_passes = min(ahead.num_wanted - len(ahead.drafts) for ahead in going)
        if self._decode is None or num_passes < 2:
            return False
        rows = [row for ahead in going if (row := ahead.row()) is not None]
        draws = draws_of(rows, [ahead.decoding.endings for ahead in going]) if len(rows) == len(going) else None
        if draws is None:
            return False
        started = self._clock()
        latest = [ahead.drafts[-1] for ahead in going]
        passes = self._decode(latest, self._spans(going, num_passes), draws, Limit(num_passes, math.inf))
        if passes.is_open:
            raise DraftNotFiniteError("its numbers are not finite")
        for ahead, tokens in zip(going, passes.tokens, strict=True):
            for token in tokens:
                ahead.keep(token)
        self.pass_costs.record(len(going), (self._clock() - started) / passes.num_passes)
        return True

    def _decide(self, logits: Tensor, deciding: Sequence[_Ahead]) -> None:
        """Give each its next draft; logits [deciding, vocab]."""
        rows = [ahead.row() for ahead in deciding]
        index = [place for place, row in enumerate(rows) if row is not None]
        if not index:
            return
        tokens = self._choose(logits, index, [row for row in rows if row is not None])
        for place, token in zip(index, tokens, strict=True):
            deciding[place].keep(token)
