"""The engine: requests in, tokens out, one step at a time. Synchronous; knows no text and no clock but the given one.

A step is schedule -> run -> decide. There is no prefill phase and no decode phase, only chunks.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from model.paged import Span
from server.engine.admission import check_request, ending_tokens
from server.engine.block_pool import BlockPool
from server.engine.runner import Runner, StepResult
from server.engine.sampler import History, Row, describe, sample, wants_history
from server.engine.scheduler import Chunk, Schedule, Scheduler
from server.engine.sequence import Sequence
from server.engine.step_stats import StepTimes, step_stats
from server.engine.types import (
    EngineInfo,
    FinishReason,
    SequenceOutput,
    SequenceRequest,
    StepOutput,
    TokenLogprob,
)

# Rows of logits described at once: prompt logprobs of a long chunk would otherwise hold several copies of the logits.
_DESCRIBE_ROWS = 64


class EngineCore:
    """Decodes sequences for one loaded model. `add` and `abort` between steps, then `step` while `has_work`."""

    def __init__(
        self, info: EngineInfo, runner: Runner, max_running: int, max_step_tokens: int, clock: Callable[[], float]
    ) -> None:
        self.info = info
        self.scheduler = Scheduler(BlockPool(info.num_blocks), max_running, max_step_tokens)
        self._runner = runner
        self._clock = clock
        self._sequences: dict[int, Sequence] = {}
        self._histories: dict[int, History] = {}
        self._aborted: list[SequenceOutput] = []

    def add(self, request: SequenceRequest) -> None:
        """Queue a sequence. Raises ParameterError when it can never be served, see `admission.check_request`."""
        check_request(self.info, request)
        sequence = Sequence(request)
        self._sequences[request.id] = sequence
        if wants_history(request.params):
            self._histories[request.id] = History.of(request.prompt, self.info.vocab_size)
        self.scheduler.add(sequence)

    def abort(self, ids: Iterable[int]) -> None:
        """End sequences now; unknown ids are ignored. Their last output comes with the next step."""
        for id_ in ids:
            if id_ in self._sequences:
                self._aborted.append(self._finish(self._output(self._sequences[id_]), "abort"))

    def has_work(self) -> bool:
        """Whether `step` would do or report anything."""
        return bool(self._sequences or self._aborted)

    def step(self) -> StepOutput:
        """Run one step and report what it added to each sequence."""
        started = self._clock()
        schedule = self.scheduler.schedule()
        scheduled = self._clock()
        wanted = [self._wanted_positions(chunk) for chunk in schedule.chunks]
        result = self._run(schedule, wanted, scheduled)
        ran = self._clock()
        outputs, self._aborted = self._aborted, []
        if result is not None:
            self.scheduler.commit(schedule.chunks)
            outputs += self._decide(schedule, wanted, result)
        times = StepTimes(started, scheduled, ran, self._clock(), result.forward_seconds if result else 0.0)
        return StepOutput(tuple(outputs), step_stats(schedule, self.scheduler, outputs, times))

    def _wanted_positions(self, chunk: Chunk) -> range:
        """The positions of a chunk whose logits are needed: prompt logprobs not yet reported, and the latest token."""
        sequence, params = chunk.sequence, chunk.sequence.request.params
        if params.prompt_logprobs is not None and sequence.num_prompt_logprobs < sequence.num_prompt - 1:
            return range(max(chunk.start, sequence.num_prompt_logprobs), chunk.end)
        return range(chunk.end - 1 if chunk.is_last and params.max_tokens else chunk.end, chunk.end)

    def _run(self, schedule: Schedule, wanted: list[range], now: float) -> StepResult | None:
        """Compute the chunks, with logits of the wanted positions; None when there is nothing to compute."""
        tokens: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        for chunk, positions in zip(schedule.chunks, wanted, strict=True):
            sequence = chunk.sequence
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
                sequence.num_cached_tokens = sequence.num_computed
            first_row = len(tokens) - chunk.start
            rows += [first_row + position for position in positions]
            tokens += sequence.tokens[chunk.start : chunk.end]
            spans.append(Span(chunk.start, chunk.length, sequence.blocks))
        return self._runner.run(tokens, spans, rows) if tokens else None

    def _decide(self, schedule: Schedule, wanted: list[range], result: StepResult) -> list[SequenceOutput]:
        """Report prompt logprobs, and choose a token for every chunk that ends its sequence."""
        logits = result.logits
        finite_logits = logits.sum(-1).isfinite().tolist()
        outputs: list[SequenceOutput] = []
        deciding: list[tuple[SequenceOutput, int]] = []  # with the row of logits that decides
        row = token = 0
        for chunk, positions in zip(schedule.chunks, wanted, strict=True):
            first, row = row, row + len(positions)
            first_token, token = token, token + chunk.length
            if not (all(finite_logits[first:row]) and all(result.is_finite[first_token:token])):
                outputs.append(self._fail(chunk.sequence))
                continue
            output = self._output(chunk.sequence, self._describe_prompt(chunk, logits[first:row]))
            if not chunk.is_last:
                outputs += [output] if output.prompt_logprobs else []
            elif chunk.sequence.request.params.max_tokens:
                deciding.append((output, row - 1))
            else:
                outputs.append(self._finish(output, "length"))
        return outputs + (self._choose(logits, deciding) if deciding else [])

    def _choose(self, logits: Tensor, deciding: list[tuple[SequenceOutput, int]]) -> list[SequenceOutput]:
        sequences = [self._sequences[output.id] for output, _ in deciding]
        chosen = logits[[row for _, row in deciding]]
        counts = [sequence.request.params.logprobs for sequence in sequences]
        reported = [index for index, count in enumerate(counts) if count is not None]
        # The reported distribution is the model's own: it is kept before the sampler works on its rows in place.
        unmodified = chosen[reported]
        tokens = sample(chosen, [self._row(sequence) for sequence in sequences])
        described = describe(unmodified, [tokens[i] for i in reported], [counts[i] or 0 for i in reported])
        logprobs = dict(zip(reported, described, strict=True))
        return [
            self._append(output, tokens[index], (logprobs[index],) if index in logprobs else ())
            for index, (output, _) in enumerate(deciding)
        ]

    def _row(self, sequence: Sequence) -> Row:
        request = sequence.request
        withheld = ending_tokens(self.info, request) if sequence.num_outputs < request.params.min_tokens else ()
        return Row(request.params, sequence.num_tokens, withheld, self._histories.get(request.id))

    def _append(self, output: SequenceOutput, token: int, logprobs: tuple[TokenLogprob, ...]) -> SequenceOutput:
        sequence = self._sequences[output.id]
        sequence.tokens.append(token)
        if output.id in self._histories:
            self._histories[output.id].append(token)
        output = replace(output, tokens=(token,), logprobs=logprobs)
        if token in ending_tokens(self.info, sequence.request):
            return self._finish(replace(output, stop_token=token), "stop")
        if sequence.num_outputs == sequence.request.params.max_tokens:
            return self._finish(output, "length")
        return output

    def _describe_prompt(self, chunk: Chunk, logits: Tensor) -> tuple[TokenLogprob, ...]:
        """Logprobs of the prompt tokens that follow the chunk's wanted positions; logits [wanted, vocab]."""
        sequence, count = chunk.sequence, chunk.sequence.request.params.prompt_logprobs
        start = sequence.num_prompt_logprobs
        targets = sequence.tokens[start + 1 : min(chunk.end + 1, sequence.num_prompt)]
        if count is None or not targets:
            return ()
        described: list[TokenLogprob] = []
        for first in range(0, len(targets), _DESCRIBE_ROWS):
            part = targets[first : first + _DESCRIBE_ROWS]
            described += describe(logits[first : first + len(part)], part, [count] * len(part))
        sequence.num_prompt_logprobs += len(described)
        return tuple(described)

    def _output(self, sequence: Sequence, prompt_logprobs: tuple[TokenLogprob, ...] = ()) -> SequenceOutput:
        return SequenceOutput(
            sequence.request.id,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            scheduled_at=sequence.scheduled_at or 0.0,
        )

    def _fail(self, sequence: Sequence) -> SequenceOutput:
        """Logits that are not finite: the sequence ends, and its blocks must not poison those who get them next."""
        pool = self.scheduler.pool
        own = [block for block in sequence.blocks if pool.references(block) == 1]
        pool.withdraw(own)
        self._runner.cache.scrub(own)
        return self._finish(self._output(sequence), "error")

    def _finish(self, output: SequenceOutput, reason: FinishReason) -> SequenceOutput:
        self.scheduler.remove(self._sequences.pop(output.id))
        self._histories.pop(output.id, None)
        return replace(output, finish_reason=reason)
