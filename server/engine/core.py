"""The engine: requests in, tokens out, one step at a time. Synchronous; knows no text and no clock but the given one.

A step is schedule -> draft -> run -> verify -> commit. There is no prefill phase and no decode phase, only chunks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from torch import Tensor

from model.paged import Span
from server.engine.admission import check_request
from server.engine.beam_search import Search
from server.engine.beam_searches import BeamSearches
from server.engine.decoding import Decoding, Verification
from server.engine.grammar_queue import GrammarQueue
from server.engine.grammar_spec import CompilerError, GrammarError
from server.engine.guidance import GuidedPair, GuidedPairs, with_guided
from server.engine.inspection import Inspection, Lineage, inspect
from server.engine.multi_step import Passes
from server.engine.parts import ALONE, Parts
from server.engine.plain_steps import choose_plain, keep_tokens, plain_decodings, run_plain
from server.engine.prompt_logprobs import describe_prompt
from server.engine.runner import Runner, StepResult
from server.engine.scheduler import Chunk, Scheduler
from server.engine.sequence import Sequence as EngineSequence
from server.engine.step_stats import StepTimes, step_stats
from server.engine.tracing import Tracing
from server.engine.types import EngineInfo, FinishReason, SequenceOutput, SequenceRequest, StepOutput, TokenLogprob
from server.engine.verify import describe_chosen, verify

_NOT_FINITE = "The model produced numbers that are not finite."
# How long a step without other work waits for a grammar before it looks for new requests again.
_COMPILING_SECONDS = 0.01


class Turn(NamedTuple):
    """A chunk as it runs: with its drafts, and the positions whose logits are needed."""

    chunk: Chunk
    drafts: tuple[int, ...]
    wanted: range  # of positions: prompt logprobs not yet reported, the latest token, the drafts


@dataclass
class Ready:
    """What a step's chunks have come to: outputs without a choice, and who may choose."""

    outputs: list[SequenceOutput] = field(default_factory=list)
    verifications: list[Verification] = field(default_factory=list)
    pairs: list[tuple[GuidedPair, tuple[int, ...]]] = field(default_factory=list)  # with the drafts that both ran
    searches: list[Search] = field(default_factory=list)


class EngineCore:
    """Decodes sequences for one loaded model. `add` and `abort` between steps, then `step` while `has_work`."""

    def __init__(
        self,
        info: EngineInfo,
        runner: Runner,
        scheduler: Scheduler,
        clock: Callable[[], float],
        parts: Parts = ALONE,
    ) -> None:
        self.info = info
        self.scheduler = scheduler
        self._runner = runner
        self._clock = clock
        self._choose_tokens = parts.choose
        self._speculator = parts.speculator
        self._multi_step = parts.multi_step
        self._decodings: dict[int, Decoding] = {}
        self._tracing = Tracing()
        self._compiling = GrammarQueue(parts.start_grammar)
        internal_ids = count(-1, -1)
        self._guided = GuidedPairs(internal_ids)
        self._lineage = Lineage(scheduler.pool)
        self._searches = BeamSearches(scheduler, info, internal_ids, self._lineage.note)
        self._aborted: list[SequenceOutput] = []

    def add(self, request: SequenceRequest) -> None:
        """Queue a sequence. Raises ParameterError when it can never be served, see `admission.check_request`."""
        check_request(self.info, request)
        if request.beams is not None:
            self._searches.add(request, request.beams)
            return
        decoding = Decoding.of(request, self.info)
        if request.grammar is not None:
            # First of all, as it may refuse: nothing has been noted of the sequence yet.
            self._compiling.add(request.id, request.cache_salt, request.grammar)
        if request.guidance is not None and request.params.max_tokens:
            self._guided.start(decoding, request.guidance)
        if request.grammar is None:
            self._queue(decoding.sequence)
        self._decodings[request.id] = decoding
        self._tracing.start(request)

    def abort(self, ids: Iterable[int]) -> None:
        """End sequences now; unknown ids are ignored. Their last output comes with the next step."""
        for id_ in ids:
            if id_ in self._decodings:
                self._aborted.append(self._finish(_output(self._decodings[id_].sequence), "abort"))
            elif id_ in self._searches:
                self._aborted.append(self._searches.abort(id_))

    def has_work(self) -> bool:
        """Whether `step` would do or report anything."""
        return bool(self._decodings or self._searches or self._aborted)

    def watch(self, descriptor: int) -> None:
        """Steps of several passes end early from now on when the descriptor has something to read."""
        if self._multi_step is not None:
            self._multi_step.watch(descriptor)

    def inspect(self, salt_prefix: str, limit: int) -> Inspection:
        """Who holds which block, for one asker; see `inspection.inspect`."""
        return inspect(self.scheduler, self._lineage, salt_prefix, limit)

    def step(self) -> StepOutput:
        """Run one step and report what it added to each sequence."""
        started = self._clock()
        failed = self._take_compiled()
        schedule = self.scheduler.schedule(self._speculator.num_wanted)
        scheduled = self._clock()
        drafts = self._speculator.draft(schedule.chunks, self._decodings)
        plain = None if drafts else plain_decodings(schedule.chunks, self._decodings)
        turns = [] if plain else [_turn(chunk, self._drafts_of(chunk, drafts)) for chunk in schedule.chunks]
        drafted = self._clock()
        passes = self._run_plain(plain, schedule.chunks) if plain else None
        result = passes.result if passes else self._run(turns, scheduled)
        ran = self._clock() - (passes.choose_seconds if passes else 0.0)
        outputs, self._aborted = self._aborted + failed, []
        if plain and passes:
            schedule = schedule._replace(chunks=passes.lengthen(schedule.chunks))
            outputs += self._keep_plain(plain, schedule.chunks, passes)
        elif result is not None:
            self.scheduler.commit(schedule.chunks)
            outputs += self._decide(turns, result)
        forward_seconds = result.forward_seconds if result else 0.0
        num_passes = passes.num_passes if passes else 1
        times = StepTimes(started, scheduled, drafted, ran, self._clock(), forward_seconds, num_passes)
        stats = self._speculator.measured(step_stats(schedule, self.scheduler, outputs, times))
        return StepOutput(tuple(outputs), stats)

    def _take_compiled(self) -> list[SequenceOutput]:
        """Queue the sequences whose grammar is ready; the outputs of those whose grammar cannot be served."""
        if not self._compiling:
            return []
        if not self.scheduler.has_work:
            self._compiling.wait(_COMPILING_SECONDS)
        failed = []
        for id_, pending in self._compiling.done():
            decoding = self._decodings[id_]
            try:
                decoding.matcher = pending.result()
            except (GrammarError, CompilerError) as error:
                is_clients = isinstance(error, GrammarError)
                output = replace(_output(decoding.sequence), error=str(error), blames_grammar=is_clients)
                failed.append(self._finish(output, "error"))
                continue
            self._compiling.remove(id_)
            self._queue(decoding.sequence)
        return failed

    def _queue(self, sequence: EngineSequence) -> None:
        self.scheduler.add(*self._guided.members(sequence))

    def _drafts_of(self, chunk: Chunk, drafts: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
        """What was drafted behind a chunk, by the id of the sequence it was drafted for."""
        return drafts.get(self._guided.drafter(chunk.sequence).request.id, ()) if drafts else ()

    def _run(self, turns: Sequence[Turn], now: float) -> StepResult | None:
        """Compute the turns, with logits of the wanted positions; None when there is nothing to compute."""
        tokens: list[int] = []
        rows: list[int] = []
        spans: list[Span] = []
        for (sequence, start, length, _), drafts, wanted in turns:
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
                sequence.num_cached_tokens = sequence.num_computed
            first_row = len(tokens) - start
            rows += range(first_row + wanted.start, first_row + wanted.stop)
            tokens += sequence.tokens[start : start + length]
            tokens += drafts
            spans.append(Span(start, length + len(drafts), sequence.blocks))
        if not tokens:
            return None
        if self._tracing and (watch := self._tracing.watch(zip((turn.chunk for turn in turns), spans, strict=True))):
            return self._runner.run(tokens, spans, rows, watch)
        return self._runner.run(tokens, spans, rows)

    def _run_plain(self, plain: Sequence[Decoding], chunks: Sequence[Chunk]) -> Passes:
        """Compute plain sequences' latest tokens, and a few of those that follow where steps are short."""
        passes = None if self._multi_step is None else self._multi_step.run(plain, chunks, self.scheduler)
        if passes is None:
            passes = Passes((), 1, run_plain(self._runner, plain))
            if self._multi_step is not None:
                self._multi_step.note(passes)
        return passes

    def _keep_plain(self, plain: Sequence[Decoding], chunks: Sequence[Chunk], passes: Passes) -> list[SequenceOutput]:
        """Give plain sequences the tokens of all passes, of which the last may not have chosen its own."""
        told = [keep_tokens(one, tokens) for one, tokens in zip(plain, passes.tokens, strict=False)]
        self.scheduler.commit(chunks)
        is_finite = not passes.is_open or passes.result.is_all_finite
        if passes.is_open and is_finite:
            told += choose_plain(self._choose_tokens, passes.result, plain)
        outputs = [output if reason is None else self._finish(output, reason) for output, reason in told]
        if not is_finite:
            outputs += self._decide([_turn(chunk.last, ()) for chunk in chunks], passes.result)
        if passes.tokens:
            for one in plain:
                self.scheduler.trim(one.sequence)
        return outputs

    def _decide(self, turns: Sequence[Turn], result: StepResult) -> list[SequenceOutput]:
        """Report prompt logprobs, and choose tokens for every chunk that ends its sequence."""
        finite_rows, is_finite = result.finite_logits, result.is_all_finite
        ready = Ready()
        row = token = 0
        for turn in turns:
            chunk, drafts, wanted = turn
            first, row = row, row + len(wanted)
            first_token, token = token, token + chunk.length + len(drafts)
            if chunk.sequence.num_computed < chunk.start + chunk.length:
                continue  # a sequence it chooses with has just failed, and this one has lost its blocks, too
            if is_finite or (all(finite_rows[first:row]) and all(result.is_finite[first_token:token])):
                self._land(turn, first, result.logits, ready)
            else:
                ready.outputs += self._not_finite(turn)
        for search in ready.searches:
            ready.outputs += self._searches.advance(search)
        logits, scores = with_guided(result.logits, [pair for pair, _ in ready.pairs])
        for pair, drafts in ready.pairs:
            ready.verifications.append(Verification(pair.decoding, row, drafts))
            row += 1 + len(drafts)
        return ready.outputs + self._choose(logits, scores, ready.verifications)

    def _land(self, turn: Turn, first_row: int, logits: Tensor, ready: Ready) -> None:
        """Report what a chunk says of its prompt, and note whether its sequence is ready to choose.

        Its rows of the step's `logits` [rows, vocab] begin at `first_row`. One that chooses together with others holds
        them.
        """
        chunk, drafts, wanted = turn
        sequence = chunk.sequence
        search, pair = self._searches.of(sequence), self._guided.of(sequence)
        end_row = first_row + len(wanted)
        if sequence.request.params.prompt_logprobs is not None and (
            described := describe_prompt(chunk, logits[first_row:end_row])
        ):
            output = replace(_output(sequence), prompt_logprobs=described)
            ready.outputs += [output] if search is None else [replace(output, id=id_) for id_ in search.followers]
        if not chunk.is_last:
            return
        choosing_row = end_row - 1 - len(drafts)
        if search is not None:
            ready.searches += [search] if search.hold(sequence, logits[end_row - 1]) else []
        elif pair is not None:
            ready.pairs += [(pair, drafts)] if pair.hold(sequence, logits[choosing_row:end_row]) else []
        elif sequence.num_remaining:
            ready.verifications.append(Verification(self._decodings[sequence.request.id], choosing_row, drafts))
        else:
            ready.outputs.append(self._finish(_output(sequence), "length"))

    def _choose(self, logits: Tensor, scores: Tensor, verifications: Sequence[Verification]) -> list[SequenceOutput]:
        """Tokens are chosen by `scores` and described by `logits`, both [rows, vocab]."""
        untraced = self._tracing.verify(logits, scores, verifications) if self._tracing else verifications
        verify(scores, untraced, self._choose_tokens)
        self._speculator.verified(verifications)
        logprobs = describe_chosen(logits, verifications)
        return [self._keep(*kept) for kept in zip(verifications, logprobs, strict=True)]

    def _keep(self, verification: Verification, logprobs: tuple[TokenLogprob, ...]) -> SequenceOutput:
        """Commit what a sequence gained: the accepted drafts' keys and values are in the cache already."""
        sequence = verification.decoding.sequence
        pair = self._guided.of(sequence)
        if pair is not None:
            pair.follow()
        for member in (sequence,) if pair is None else (sequence, pair.companion):
            if verification.drafts:
                self.scheduler.advance(member, member.num_computed + verification.num_accepted)
            self.scheduler.trim(member)
        output = SequenceOutput(  # mostly by position, as names cost as much again
            sequence.request.id,
            tuple(verification.tokens),
            logprobs,
            (),
            None,
            verification.stop_token,
            sequence.num_cached_tokens or 0,
            sequence.scheduled_at or 0.0,
            len(verification.drafts),
            verification.num_accepted,
            verification.error,
            blames_grammar=bool(verification.error),
            traces=verification.traces,
        )
        return self._finish(output, verification.finish_reason) if verification.finish_reason else output

    def _not_finite(self, turn: Turn) -> list[SequenceOutput]:
        """Logits that are not finite: the sequence ends, and its blocks must not poison those who get them next.

        Where it may have been the drafts' doing, the sequence is computed anew and never drafts again.
        """
        sequence = turn.chunk.sequence
        search = self._searches.of(sequence)
        members = self._guided.members(sequence) if search is None else search.sequences
        for member in members:
            self._scrub(member)
        if search is not None:
            return self._searches.fail(search, "error", _NOT_FINITE)
        if turn.drafts:
            if (pair := self._guided.of(sequence)) is not None:
                pair.release()
            members[0].may_draft = False
            for member in reversed(members):
                self.scheduler.preempt(member)
            return []
        return [self._finish(replace(_output(members[0]), error=_NOT_FINITE), "error")]

    def _scrub(self, sequence: EngineSequence) -> None:
        pool = self.scheduler.pool
        own = [block for block in sequence.blocks if pool.references(block) == 1]
        pool.withdraw(own)
        self._runner.scrub(own)

    def _finish(self, output: SequenceOutput, reason: FinishReason) -> SequenceOutput:
        sequence = self._decodings.pop(output.id).sequence
        members = self._guided.end(sequence)
        if not self._compiling.remove(output.id):
            for member in members:
                self._lineage.note(member)
                self.scheduler.remove(member)
        self._speculator.forget(sequence)
        self._tracing.end(output.id)
        return replace(output, finish_reason=reason)


def _turn(chunk: Chunk, drafts: tuple[int, ...]) -> Turn:
    sequence, start, length, _ = chunk
    params = sequence.request.params
    end = start + length + len(drafts)
    if params.prompt_logprobs is not None and sequence.num_prompt_logprobs < sequence.num_prompt - 1:
        return Turn(chunk, drafts, range(max(start, sequence.num_prompt_logprobs), end))
    return Turn(chunk, drafts, range(start + length - 1 if chunk.is_last and params.max_tokens else end, end))


def _output(sequence: EngineSequence) -> SequenceOutput:
    return SequenceOutput(
        sequence.request.id,
        num_cached_tokens=sequence.num_cached_tokens or 0,
        scheduled_at=sequence.scheduled_at or 0.0,
    )
