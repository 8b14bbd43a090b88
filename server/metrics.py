"""Every metric of the server: what it is called, what it means, and which event moves it.

Listens to the engine client; knows no HTTP. The label names and all their values are fixed when it is built.
"""

from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, StepStats
from server.families import Counter, Gauge, Histogram
from server.records import Outcome, Rejection, RequestRecord, SequenceRecord, StepTimings

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PHASES = ("schedule", "draft", "forward", "sample", "other")
DRAFTERS: tuple[DraftMethod, ...] = ("draft", "ngram", "suffix")
DRAFT_POSITIONS = tuple(map(str, range(1, MAX_DRAFT_TOKENS + 1)))
BLOCK_STATES = ("free", "cached", "used")

# A step alone moves some thirty series, which are in no cache any more after the tokens of the step before.
STEPS_AT_ONCE = 32


def _decades(first: int, last: int) -> tuple[float, ...]:
    """Six bounds per decade, no two more than a factor 1.5 apart, from 10**first to 10**last."""
    steps = ("1", "1.5", "2", "3", "4.5", "7")
    return (*(float(f"{step}e{power}") for power in range(first, last) for step in steps), float(f"1e{last}"))


TOKEN_SECONDS = _decades(-5, 1)  # 10 us, a tenth of a small Mini-GPT's token, to 10 s
REQUEST_SECONDS = (*_decades(-3, 2), 150.0, 200.0, 300.0, 450.0, 600.0)  # 1 ms to ten minutes
TOKEN_COUNTS = tuple(float(2**power) for power in range(17))  # 1 to 65,536


class Metrics:
    """A Listener that turns what it hears into Prometheus series, one set per model."""

    def __init__(self, models: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self._models = tuple(models)
        self._uncounted: list[tuple[str, StepStats, StepTimings]] = []
        self._add_request_families()
        self._add_step_families()
        self._add_latency_families()
        self._add_engine_families()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, to be sent as CONTENT_TYPE."""
        self._count_steps()
        return generate_latest(self.registry)

    def on_rejected(self, model: str, reason: Rejection) -> None:
        self._requests_rejected.add(1, model, reason)

    def on_started(self, model: str, num_sequences: int) -> None:
        self._requests_started.add(1, model)
        self._requests_in_flight.add(1, model)
        self._sequences_started.add(num_sequences, model)
        self._sequences_in_flight.add(num_sequences, model)

    def on_step(self, model: str, stats: StepStats, timings: StepTimings) -> None:
        self._uncounted.append((model, stats, timings))
        if len(self._uncounted) == STEPS_AT_ONCE:
            self._count_steps()

    def on_finished(self, record: SequenceRecord) -> None:
        model = record.model
        self._sequences_finished.add(1, model, record.outcome)
        self._sequences_in_flight.add(-1, model)
        self._prompt_length.observe(record.num_prompt_tokens, model)
        self._output_length.observe(record.num_output_tokens, model)
        self._end_to_end.observe(record.finished_at - record.arrived_at, model)
        if record.first_token_at is not None:
            self._decode.observe(record.finished_at - record.first_token_at, model)

    def on_request_finished(self, record: RequestRecord) -> None:
        self._requests_finished.add(1, record.model, record.outcome)
        self._requests_in_flight.add(-1, record.model)

    def on_engine_ready(self) -> None:
        self._engine_ready.set(1)
        self._engine_starts.add(1)

    def on_engine_lost(self) -> None:
        self._count_steps()
        self._engine_ready.set(0)
        self._engine_exits.add(1)
        for model in self._models:
            self._running.set(0, model)
            self._waiting.set(0, model)
            self._kv_usage.set(0, model)
            self._draft_failed.set(0, model)
            for state in BLOCK_STATES:
                self._kv_blocks.set(0, model, state)

    def _count_steps(self) -> None:
        """What has not been counted yet. Nobody sees in between."""
        for model, stats, timings in self._uncounted:
            self._count_step(model, stats)
            self._show_state(model, stats)
            self._observe_times(model, timings)
        self._uncounted.clear()

    def _observe_times(self, model: str, timings: StepTimings) -> None:
        for seconds in timings.queue_seconds:
            self._queue.observe(seconds, model)
        for seconds in timings.prefill_seconds:
            self._prefill.observe(seconds, model)
        for seconds in timings.first_token_seconds:
            self._first_token.observe(seconds, model)
        for seconds, num_tokens in timings.gaps:
            self._inter_token.observe(seconds, model, count=num_tokens)

    def _count_step(self, model: str, stats: StepStats) -> None:
        self._step_seconds.observe(stats.duration_seconds, model)
        self._step_tokens.observe(stats.num_prompt_tokens + stats.num_generated_tokens, model)
        named = (stats.schedule_seconds, stats.draft_seconds, stats.forward_seconds, stats.sample_seconds)
        for phase, seconds in zip(PHASES, (*named, max(0.0, stats.duration_seconds - sum(named))), strict=True):
            self._phase_seconds.add(seconds, model, phase)
        self._prompt_tokens.add(stats.num_prompt_tokens, model)
        self._generated_tokens.add(stats.num_generated_tokens, model)
        self._prefix_queries.add(stats.num_prefix_query_tokens, model)
        self._prefix_hits.add(stats.num_prefix_hit_tokens, model)
        self._preemptions.add(stats.num_preemptions, model)
        for counts in stats.drafts:
            places = zip(DRAFT_POSITIONS, counts.num_drafted, counts.num_accepted, strict=True)
            for position, drafted, accepted in places:
                self._draft_tokens.add(drafted, model, counts.method, position)
                self._accepted_tokens.add(accepted, model, counts.method, position)

    def _show_state(self, model: str, stats: StepStats) -> None:
        num_used = stats.num_blocks - stats.num_free_blocks - stats.num_cached_blocks
        self._running.set(stats.num_running, model)
        self._waiting.set(stats.num_waiting, model)
        self._draft_failed.set(float(stats.has_draft_model_failed), model)
        self._kv_usage.set(num_used / stats.num_blocks if stats.num_blocks else 0.0, model)
        for state, count in zip(BLOCK_STATES, (stats.num_free_blocks, stats.num_cached_blocks, num_used), strict=True):
            self._kv_blocks.set(count, model, state)

    def _add_request_families(self) -> None:
        outcomes = {"outcome": get_args(Outcome)}
        self._requests_started = self._counter("requests_started", "Requests accepted.")
        self._requests_finished = self._counter(
            "requests_finished", "Requests ended, by outcome (the worst of its sequences').", outcomes
        )
        self._requests_in_flight = self._gauge("requests_in_flight", "Requests accepted and not ended.")
        self._requests_rejected = self._counter(
            "requests_rejected", "Requests never started, by reason.", {"reason": get_args(Rejection)}
        )
        self._sequences_started = self._counter("sequences_started", "Sequences (prompts times n) accepted.")
        self._sequences_finished = self._counter("sequences_finished", "Sequences ended, by outcome.", outcomes)
        self._sequences_in_flight = self._gauge("sequences_in_flight", "Sequences accepted and not ended.")
        self._prompt_length = self._histogram(
            "sequence_prompt_tokens", "Prompt length of ended sequences.", TOKEN_COUNTS
        )
        self._output_length = self._histogram(
            "sequence_output_tokens", "Output length of ended sequences.", TOKEN_COUNTS
        )

    def _add_step_families(self) -> None:
        self._running = self._gauge("sequences_running", "Sequences running after the last step.")
        self._waiting = self._gauge("sequences_waiting", "Sequences waiting or preempted after the last step.")
        self._kv_usage = self._gauge("kv_usage_ratio", "Share of KV blocks in use by running sequences.")
        self._kv_blocks = self._gauge(
            "kv_blocks",
            "KV blocks by state; cached ones are unused but kept for their contents.",
            {"state": BLOCK_STATES},
        )
        self._prefix_queries = self._counter(
            "prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self._preemptions = self._counter("preemptions", "Sequences put back to wait because KV blocks ran out.")
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens computed, recomputation after preemption included."
        )
        self._generated_tokens = self._counter("generated_tokens", "Tokens generated.")
        by_place = {"method": DRAFTERS, "position": DRAFT_POSITIONS}
        self._draft_tokens = self._counter(
            "draft_tokens", "Tokens guessed ahead, by method and place behind the latest token.", by_place
        )
        self._accepted_tokens = self._counter(
            "accepted_draft_tokens", "Guessed tokens that proved right, by method and place.", by_place
        )
        self._draft_failed = self._gauge(
            "draft_model_failed", "1 once the draft model has failed and drafts no more, until the next engine start."
        )
        self._step_seconds = self._histogram("step_duration_seconds", "Duration of engine steps.", TOKEN_SECONDS)
        self._step_tokens = self._histogram("step_tokens", "Prompt and output tokens per step.", TOKEN_COUNTS)
        self._phase_seconds = self._counter(
            "step_phase_seconds", "Time spent in each phase of the engine's steps.", {"phase": PHASES}
        )

    def _add_latency_families(self) -> None:
        self._queue = self._histogram("queue_seconds", "Arrival to first scheduled step.", REQUEST_SECONDS)
        self._prefill = self._histogram("prefill_seconds", "First scheduled step to first token.", REQUEST_SECONDS)
        self._decode = self._histogram("decode_seconds", "First token to the end.", REQUEST_SECONDS)
        self._first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token.", REQUEST_SECONDS)
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Time per token after the first; a step's tokens share it.", TOKEN_SECONDS
        )
        self._end_to_end = self._histogram("end_to_end_seconds", "Arrival to the end.", REQUEST_SECONDS)

    def _add_engine_families(self) -> None:
        self._engine_ready = Gauge("minigpt_engine_ready", "1 while the engine process can take work.", {})
        self._engine_starts = Counter("minigpt_engine_starts", "Engine processes that became ready.", {})
        self._engine_exits = Counter("minigpt_engine_exits", "Engine processes that ended, for whatever reason.", {})
        for family in (self._engine_ready, self._engine_starts, self._engine_exits):
            self.registry.register(family)

    def _counter(self, name: str, text: str, split: dict[str, tuple[str, ...]] | None = None) -> Counter:
        family = Counter(f"minigpt_{name}", text, {"model": self._models, **(split or {})})
        self.registry.register(family)
        return family

    def _gauge(self, name: str, text: str, split: dict[str, tuple[str, ...]] | None = None) -> Gauge:
        family = Gauge(f"minigpt_{name}", text, {"model": self._models, **(split or {})})
        self.registry.register(family)
        return family

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        family = Histogram(f"minigpt_{name}", text, {"model": self._models}, bounds)
        self.registry.register(family)
        return family
