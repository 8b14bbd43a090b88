"""A listener that keeps books of its own, and a clock that stands still until it is moved."""

from collections import Counter

from server.engine.types import StepStats
from server.records import Rejection, RequestRecord, SequenceRecord, StepTimings


class Recorder:
    """Everything it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.rejected: list[tuple[str, Rejection]] = []
        self.finished: list[SequenceRecord] = []
        self.requests: list[RequestRecord] = []
        self.steps: list[tuple[str, StepStats, StepTimings]] = []
        self.engine: list[str] = []

    def on_rejected(self, model: str, reason: Rejection) -> None:
        self.rejected.append((model, reason))

    def on_started(self, model: str, num_sequences: int) -> None:
        self.started.append((model, num_sequences))

    def on_step(self, model: str, stats: StepStats, timings: StepTimings) -> None:
        self.steps.append((model, stats, timings))

    def on_finished(self, record: SequenceRecord) -> None:
        self.finished.append(record)

    def on_request_finished(self, record: RequestRecord) -> None:
        self.requests.append(record)

    def on_engine_ready(self) -> None:
        self.engine.append("ready")

    def on_engine_lost(self) -> None:
        self.engine.append("lost")

    def outcomes(self) -> Counter[str]:
        return Counter(record.outcome for record in self.finished)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
