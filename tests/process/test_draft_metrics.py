"""What a scraper sees of drafts."""

from dataclasses import replace

from fake_core import FakeCore
from test_metrics import families, value

from server.engine.types import DraftCounts
from server.metrics import Metrics
from server.records import StepTimings

STATS = FakeCore().step().stats
COUNTS = (
    DraftCounts("draft", (3, 3, 2, 0, 0, 0, 0, 0), (2, 1, 0, 0, 0, 0, 0, 0)),
    DraftCounts("suffix", (1, 0, 0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0, 0, 0)),
)


def test_drafts_are_counted_by_method_and_position() -> None:
    metrics = Metrics(["a", "b"])
    stats = replace(STATS, drafts=COUNTS, duration_seconds=0.5, draft_seconds=0.125)
    for _ in range(2):
        metrics.on_step("a", stats, StepTimings())
    for name, place in (("minigpt_draft_tokens_total", 0), ("minigpt_accepted_draft_tokens_total", 1)):
        for counts in COUNTS:
            by_place = (counts.num_drafted, counts.num_accepted)[place]
            for position, count in enumerate(by_place, start=1):
                labels = {"model": "a", "method": counts.method, "position": str(position)}
                assert value(metrics, name, **labels) == 2 * count
    total = sum(sample.value for sample in families(metrics)["minigpt_draft_tokens"].samples)
    assert total == 2 * (8 + 1)
    assert value(metrics, "minigpt_step_phase_seconds_total", model="a", phase="draft") == 0.25


def test_a_failed_draft_model_shows_until_the_engine_starts_anew() -> None:
    metrics = Metrics(["a"])
    metrics.on_step("a", replace(STATS, has_draft_model_failed=True), StepTimings())
    assert value(metrics, "minigpt_draft_model_failed", model="a") == 1
    metrics.on_engine_lost()
    assert value(metrics, "minigpt_draft_model_failed", model="a") == 0
