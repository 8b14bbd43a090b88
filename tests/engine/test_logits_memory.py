"""A step's logits are the runner's memory: nothing that the engine keeps from one step to the next is in it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from backends import natively, on_every_backend
from engine_driver import Ticks, decode, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, tiny_model
from torch import Tensor

from model.gpt import GPT
from model.paged import Span
from server.engine.native_runner import _MOST_KEPT
from server.engine.params import SamplingParams
from server.engine.runner import Runner, StepResult
from server.engine.tracing_inside import Watch
from server.engine.tracing_types import TraceOptions
from server.engine.types import BeamSearch, Guidance, SequenceRequest

PROMPT = tuple(range(7, 67))
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, logprobs=2)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


class Forgetful:
    """A Runner that spoils the logits of the step before."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._latest: Tensor | None = None
        self.config = runner.config
        self.scrub = runner.scrub

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        if self._latest is not None:
            with torch.inference_mode():
                self._latest.fill_(torch.nan)
        result = self._runner.run(tokens, spans, wanted, watch)
        self._latest = result.logits
        return result


@on_every_backend
def test_logits_that_are_spoilt_after_their_step_change_nothing(model: GPT) -> None:
    requests = [
        *request_mix(8),
        SequenceRequest(20, PROMPT, GREEDY, guidance=Guidance(PROMPT[10:50], 1.5)),
        SequenceRequest(21, PROMPT[5:], replace(GREEDY, prompt_logprobs=2), beams=BeamSearch(3)),
        SequenceRequest(22, PROMPT[9:], replace(GREEDY, top_p=0.9, temperature=1.0), trace=TraceOptions(3)),
    ]
    kept, spoilt = (engine_core(model, max_running=6, max_step_tokens=32) for _ in range(2))
    spoilt._runner = Forgetful(spoilt._runner)
    assert decode(spoilt, requests).outputs == decode(kept, requests).outputs


def test_steps_take_the_same_memory_and_whole_prompts_their_own(model: GPT) -> None:
    runner = natively(model, 40, Ticks())

    def place_of(num_rows: int) -> int:
        spans = [Span(0, 100, range(start, start + 7)) for start in range(0, 35, 7)]
        rows = [row for _ in range(2) for row in range(500)][:num_rows]
        return runner.run([1] * 500, spans, rows).logits.data_ptr()

    first = place_of(_MOST_KEPT)
    assert place_of(3) == first
    assert place_of(_MOST_KEPT + 1) != first
    assert place_of(_MOST_KEPT) == first
