"""Turns the course of open sequences into numbers: one step's waiting times, and the record of what has ended."""

from server.generation import Generation, OpenSequence
from server.records import Outcome, RequestRecord, SequenceRecord, StepTimings, TokenGap

WORST_FIRST: tuple[Outcome, ...] = ("error", "abort", "length", "stop")


class StepTimer:
    """Gathers what one step's outputs mean for those who wait. All times of a step are taken at one moment, `now`."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._queue: list[float] = []
        self._prefill: list[float] = []
        self._first_token: list[float] = []
        self.gaps: dict[float, int] = {}  # seconds to the number of tokens that came after so many

    def note_scheduled(self, sequence: OpenSequence, scheduled_at: float) -> None:
        """The sequence has been run for the first time; engine and client read the same monotonic clock."""
        sequence.scheduled_at = scheduled_at
        self._queue.append(scheduled_at - sequence.arrived_at)

    def note_tokens(self, sequence: OpenSequence, num_tokens: int) -> None:
        """Tokens have come for it. Several at once share the time since the last."""
        now = self.now
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            self._first_token.append(now - sequence.arrived_at)
            self._prefill.append(now - (sequence.scheduled_at or sequence.arrived_at))
        else:
            seconds = (now - sequence.last_token_at) / num_tokens
            self.gaps[seconds] = self.gaps.get(seconds, 0) + num_tokens
        sequence.last_token_at = now
        sequence.num_output_tokens += num_tokens

    def timings(self) -> StepTimings:
        gaps = [TokenGap(seconds, num_tokens) for seconds, num_tokens in self.gaps.items()]
        return StepTimings(self._queue, self._prefill, self._first_token, gaps)


def sequence_record(model: str, sequence: OpenSequence, outcome: Outcome, now: float) -> SequenceRecord:
    """What is left of a sequence that ends now."""
    return SequenceRecord(
        model=model,
        outcome=outcome,
        arrived_at=sequence.arrived_at,
        scheduled_at=sequence.scheduled_at,
        first_token_at=sequence.first_token_at,
        finished_at=now,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
    )


def request_record(model: str, generation: Generation, now: float) -> RequestRecord:
    """What is left of a request whose last sequence ends now."""
    outcomes = {sequence.outcome for sequence in generation.sequences}
    worst = next(outcome for outcome in WORST_FIRST if outcome in outcomes)
    return RequestRecord(model, worst, generation.arrived_at, now)
