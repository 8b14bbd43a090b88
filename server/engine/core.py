"""The engine: requests in, tokens out, one step at a time. Synchronous; knows no text and no clock but the given one.

A step is schedule -> draft -> run -> verify -> commit. There is no prefill phase and no decode phase, only chunks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NoReturn, Protocol

from torch import Tensor

from model.paged import Span
from server.engine.admission import check_request
from server.engine.block_pool import BlockPool
from server.engine.decoding import Decoding, Matcher, Verification
from server.engine.grammar_spec import Grammar, GrammarError
from server.engine.guidance import GuidedPair, GuidedPairs, with_guided
from server.engine.params import ParameterError
from server.engine.prompt_logprobs import describe_prompt
from server.engine.runner import Runner, StepResult
from server.engine.scheduler import Chunk, Schedule, Scheduler
from server.engine.sequence import Sequence as EngineSequence
from server.engine.speculation import NoSpeculation, Speculator
from server.engine.step_stats import StepTimes, step_stats
from server.engine.types import EngineInfo, FinishReason, SequenceOutput, SequenceRequest, StepOutput, TokenLogprob
from server.engine.verify import describe_chosen, verify


_NOT_FINITE = "The model produced numbers that are not finite."
# How long a step without other work waits for a grammar before it looks for new requests again.
_COMPILING_SECONDS = 0.01


class PendingMatcher(Protocol):
    """A grammar that is being compiled in another thread."""

    def done(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Return when it is done, or after that time."""
        ...

    def result(self) -> Matcher:
        """What a sequence follows it by. Raises GrammarError."""
        ...


StartGrammar = Callable[[Grammar], PendingMatcher]


def no_grammars(grammar: Grammar) -> NoReturn:
    """Of a core made without a compiler. Raises ParameterError."""
    raise ParameterError("grammar", "is not supported by this engine")


@dataclass(frozen=True)
class Turn:
    """A chunk as it runs: with its drafts, and the positions whose logits are needed."""

    chunk: Chunk
    drafts: tuple[int, ...]
    wanted: range  # of positions: prompt logprobs not yet reported, the latest token, the drafts

    @property
    def span(self) -> Span:
        return Span(self.chunk.start, self.chunk.length + len(self.drafts), self.chunk.sequence.blocks)

    @property
    def tokens(self) -> list[int]:
        return [*self.chunk.sequence.tokens[self.chunk.start : self.chunk.end], *self.drafts]


class EngineCore:
    """Decodes sequences for one loaded model. `add` and `abort` between steps, then `step` while `has_work`."""

    def __init__(
        self,
        info: EngineInfo,
        runner: Runner,
        scheduler: Scheduler,
        clock: Callable[[], float],
        speculator: Speculator | None = None,
        start_grammar: StartGrammar = no_grammars,
    ) -> None:
        self.info = info
        self.scheduler = scheduler
        self._runner = runner
        self._clock = clock
        self._speculator: Speculator = speculator or NoSpeculation()
        self._start_grammar = start_grammar
        self._decodings: dict[int, Decoding] = {}
        self._compiling: dict[int, PendingMatcher] = {}
        self._guided = GuidedPairs(count(-1, -1))  # ids below 0 are nobody's
        self._aborted: list[SequenceOutput] = []

    def add(self, request: SequenceRequest) -> None:
        """Queue a sequence. Raises ParameterError when it can never be served, see `admission.check_request`."""
        check_request(self.info, request)
        decoding = Decoding.of(request, self.info)
        if request.guidance is not None and request.params.max_tokens:
            self._guided.start(decoding, request.guidance)
        if request.grammar is not None:
            self._compiling[request.id] = self._start_grammar(request.grammar)
        else:
            self._queue(decoding.sequence)
        self._decodings[request.id] = decoding

    def abort(self, ids: Iterable[int]) -> None:
        """End sequences now; unknown ids are ignored. Their last output comes with the next step."""
        for id_ in ids:
            if id_ in self._decodings:
                self._aborted.append(self._finish(_output(self._decodings[id_].sequence), "abort"))

    def has_work(self) -> bool:
        """Whether `step` would do or report anything."""
        return bool(self._decodings or self._aborted)

    def step(self) -> StepOutput:
        """Run one step and report what it added to each sequence."""
        started = self._clock()
        failed = self._take_compiled()
        schedule = self.scheduler.schedule(self._speculator.num_wanted)
        scheduled = self._clock()
        drafts = self._speculator.draft(schedule.chunks, self._decodings)
        turns = [_turn(chunk, drafts.get(chunk.sequence.request.id, ())) for chunk in schedule.chunks]
        drafted = self._clock()
        result = self._run(turns, scheduled)
        ran = self._clock()
        outputs, self._aborted = self._aborted + failed, []
        if result is not None:
            self.scheduler.commit(schedule.chunks)
            outputs += self._decide(turns, result)
        forward_seconds = result.forward_seconds if result else 0.0
        times = StepTimes(started, scheduled, drafted, ran, self._clock(), forward_seconds)
        stats = step_stats(schedule, self.scheduler, outputs, times)
        self._speculator.measured(stats)
        return StepOutput(tuple(outputs), stats)

    def _take_compiled(self) -> list[SequenceOutput]:
        """Queue the sequences whose grammar is ready; the outputs of those whose grammar cannot be served."""
        if not self._compiling:
            return []
        if not self.scheduler.has_work:
            next(iter(self._compiling.values())).wait(_COMPILING_SECONDS)
        failed = []
        for id_, pending in list(self._compiling.items()):
            if not pending.done():
                continue
            decoding = self._decodings[id_]
            try:
                decoding.matcher = pending.result()
            except GrammarError as error:
                failed.append(self._finish(replace(_output(decoding.sequence), error=str(error)), "error"))
                continue
            del self._compiling[id_]
            self._queue(decoding.sequence)
        return failed

    def _queue(self, sequence: EngineSequence) -> None:
        for member in self._guided.members(sequence):
            self.scheduler.add(member)

    def _run(self, turns: Sequence[Turn], now: float) -> StepResult | None:
        """Compute the turns, with logits of the wanted positions; None when there is nothing to compute."""
        tokens: list[int] = []
        rows: list[int] = []
        for turn in turns:
            sequence = turn.chunk.sequence
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
                sequence.num_cached_tokens = sequence.num_computed
            first_row = len(tokens) - turn.chunk.start
            rows += [first_row + position for position in turn.wanted]
            tokens += turn.tokens
        return self._runner.run(tokens, [turn.span for turn in turns], rows) if tokens else None

    def _decide(self, turns: Sequence[Turn], result: StepResult) -> list[SequenceOutput]:
        """Report prompt logprobs, and choose tokens for every chunk that ends its sequence."""
        finite_rows = result.logits.sum(-1).isfinite().tolist()
        outputs: list[SequenceOutput] = []
        deciding: list[tuple[SequenceOutput, Verification]] = []
        guided: list[GuidedPair] = []
        row = token = 0
        for turn in turns:
            first, row = row, row + len(turn.wanted)
            first_token, token = token, token + turn.chunk.length + len(turn.drafts)
            sequence = turn.chunk.sequence
            if not self._is_alive(sequence):
                continue  # its other half has just failed
            if not (all(finite_rows[first:row]) and all(result.is_finite[first_token:token])):
                outputs += self._not_finite(turn)
                continue
            output = replace(_output(sequence), prompt_logprobs=describe_prompt(turn.chunk, result.logits[first:row]))
            if not turn.chunk.is_last:
                outputs += [output] if output.prompt_logprobs else []
            elif (pair := self._guided.of(sequence)) is not None:
                outputs += [output] if output.prompt_logprobs else []
                guided += [pair] if pair.hold(sequence, result.logits[row - 1]) else []
            elif sequence.num_remaining:
                decoding = self._decodings[output.id]
                deciding.append((output, Verification(decoding, row - 1 - len(turn.drafts), turn.drafts)))
            else:
                outputs.append(self._finish(output, "length"))
        logits, scores = with_guided(result.logits, guided)
        deciding += [
            (_output(pair.leader), Verification(pair.decoding, len(result.logits) + index))
            for index, pair in enumerate(guided)
        ]
        return outputs + self._choose(logits, scores, deciding)

    def _choose(
        self, logits: Tensor, scores: Tensor, deciding: Sequence[tuple[SequenceOutput, Verification]]
    ) -> list[SequenceOutput]:
        """Tokens are chosen by `scores` and described by `logits`, both [rows, vocab]."""
        verifications = [verification for _, verification in deciding]
        verify(scores, verifications)
        self._speculator.verified(verifications)
        logprobs = describe_chosen(logits, verifications)
        return [
            self._keep(output, verification, described)
            for (output, verification), described in zip(deciding, logprobs, strict=True)
        ]

    def _keep(
        self, output: SequenceOutput, verification: Verification, logprobs: tuple[TokenLogprob, ...]
    ) -> SequenceOutput:
        """Commit what a sequence gained: the accepted drafts' keys and values are in the cache already."""
        sequence = verification.decoding.sequence
        if verification.drafts:
            self.scheduler.advance(sequence, sequence.num_computed + verification.num_accepted)
            self.scheduler.trim(sequence)
        if (pair := self._guided.of(sequence)) is not None:
            pair.follow()
        output = replace(
            output,
            tokens=tuple(verification.tokens),
            logprobs=logprobs,
            stop_token=verification.stop_token,
            num_drafted=len(verification.drafts),
            num_accepted=verification.num_accepted,
            error=verification.error,
        )
        return self._finish(output, verification.finish_reason) if verification.finish_reason else output

    def _not_finite(self, turn: Turn) -> list[SequenceOutput]:
        """Logits that are not finite: the sequence ends, and its blocks must not poison those who get them next.

        Where it may have been the drafts' doing, the sequence is computed anew and never drafts again.
        """
        sequence = turn.chunk.sequence
        members = self._guided.members(sequence)
        for member in members:
            self._scrub(member)
        if turn.drafts:
            sequence.may_draft = False
            self.scheduler.preempt(sequence)
            return []
        return [self._finish(replace(_output(members[0]), error=_NOT_FINITE), "error")]

    def _is_alive(self, sequence: EngineSequence) -> bool:
        return sequence.request.id in self._decodings or self._guided.of(sequence) is not None

    def _scrub(self, sequence: EngineSequence) -> None:
        pool = self.scheduler.pool
        own = [block for block in sequence.blocks if pool.references(block) == 1]
        pool.withdraw(own)
        self._runner.cache.scrub(own)

    def _finish(self, output: SequenceOutput, reason: FinishReason) -> SequenceOutput:
        sequence = self._decodings.pop(output.id).sequence
        members = self._guided.end(sequence)
        if self._compiling.pop(output.id, None) is None:
            for member in members:
                self.scheduler.remove(member)
        self._speculator.forget(sequence)
        return replace(output, finish_reason=reason)


def _turn(chunk: Chunk, drafts: tuple[int, ...]) -> Turn:
    sequence, params = chunk.sequence, chunk.sequence.request.params
    end = chunk.end + len(drafts)
    if params.prompt_logprobs is not None and sequence.num_prompt_logprobs < sequence.num_prompt - 1:
        return Turn(chunk, drafts, range(max(chunk.start, sequence.num_prompt_logprobs), end))
    return Turn(chunk, drafts, range(chunk.end - 1 if chunk.is_last and params.max_tokens else end, end))


def _output(sequence: EngineSequence) -> SequenceOutput:
    return SequenceOutput(
        sequence.request.id,
        num_cached_tokens=sequence.num_cached_tokens or 0,
        scheduled_at=sequence.scheduled_at or 0.0,
    )
