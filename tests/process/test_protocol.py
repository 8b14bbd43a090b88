"""The wire: what one side says is what the other hears, and nothing malformed gets through."""

import msgspec
import pytest
from fake_core import INFO, FakeCore, outputs_of, request

from server.engine.config import EngineConfig
from server.engine.params import MAX_SEED, SamplingParams
from server.engine.tracing_types import TokenTrace
from server.engine.types import SequenceOutput, SequenceRequest, StepOutput, TokenLogprob
from server.framing import FrameReader
from server.protocol import (
    Addition,
    Commands,
    Configure,
    Fatal,
    FromEngine,
    ModelSource,
    Ready,
    Refused,
    StepReport,
    ToEngine,
    decode_from_engine,
    decode_to_engine,
    encode,
)

EVERY_PARAMETER = SamplingParams(
    max_tokens=7,
    min_tokens=2,
    temperature=0.3,
    top_k=5,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=0.5,
    logit_bias=((3, -100.0), (4, 2.5)),
    allowed_tokens=(1, 2, 3),
    banned_tokens=(2,),
    stop_token_ids=(9,),
    ignore_eos=True,
    seed=MAX_SEED,
    logprobs=3,
    prompt_logprobs=0,
)


@pytest.mark.parametrize(
    "message",
    [
        Configure(
            (ModelSource("a", "/x"), ModelSource("b", "/y")),
            EngineConfig("cpu", "float32", "torch", num_blocks=9, max_running=2, max_step_tokens=8, threads=1),
            "debug",
            "json",
        ),
        Commands(),
        Commands((Addition(1, SequenceRequest(2**63, (1, 2), EVERY_PARAMETER, "sält")),), (5, 6)),
    ],
)
def test_the_engine_hears_what_was_said(message: ToEngine) -> None:
    (payload,) = FrameReader().feed(encode(message))
    assert decode_to_engine(payload) == message


TRACE = TokenTrace(0.5, (1,), (-0.5,), -0.5, 1, (), 1.0, 1, None, None)
LOGPROB = TokenLogprob(5, float("-inf"), 1000, (1, 2), (-0.25, -1e-30))


@pytest.mark.parametrize(
    "message",
    [
        Ready((INFO, INFO)),
        Fatal("no such folder"),
        Refused((1, 2)),
        StepReport(
            1,
            StepOutput(
                (SequenceOutput(3, (1, 0), (LOGPROB,), (LOGPROB, LOGPROB), "stop", 0, 16, 1e6 + 0.125),),
                FakeCore().step().stats,
            ),
        ),
    ],
)
def test_the_client_hears_what_was_said(message: FromEngine) -> None:
    (payload,) = FrameReader().feed(encode(message))
    assert decode_from_engine(payload) == message


def test_outputs_that_are_only_tokens_travel_in_columns_and_arrive_as_they_were() -> None:
    plain = [SequenceOutput(n, tuple(range(n + 1)), num_cached_tokens=16 * n, scheduled_at=0.25 * n) for n in range(3)]
    others = [
        SequenceOutput(3),
        SequenceOutput(4, (1, 2), num_drafted=1),
        SequenceOutput(5, (1,), (LOGPROB,)),
        SequenceOutput(6, (1,), (), (LOGPROB,)),
        SequenceOutput(7, (1,), finish_reason="stop", stop_token=1),
        SequenceOutput(8, (1,), num_drafted=1),
        SequenceOutput(9, (1,), traces=(TRACE,)),
    ]
    step = StepOutput((others[0], *plain, *others[1:]), FakeCore().step().stats)
    (payload,) = FrameReader().feed(encode(StepReport.of(1, step)))
    report = decode_from_engine(payload)
    assert isinstance(report, StepReport)
    assert outputs_of(report) == [*plain, *others]
    assert report.plain.ids == (0, 1, 2)
    assert (report.model, report.step.stats) == (1, step.stats)


def test_parameters_out_of_range_do_not_pass_the_wire() -> None:
    wrong = msgspec.to_builtins(Commands((Addition(0, request([1], 4)),)))
    wrong["add"][0][1]["params"]["temperature"] = -1.0
    with pytest.raises(msgspec.DecodeError, match="temperature"):
        decode_to_engine(msgspec.msgpack.encode(wrong))


def test_neither_side_takes_the_other_sides_messages() -> None:
    (payload,) = FrameReader().feed(encode(Refused((1,))))
    with pytest.raises(msgspec.DecodeError):
        decode_to_engine(payload)
    (payload,) = FrameReader().feed(encode(Commands()))
    with pytest.raises(msgspec.DecodeError):
        decode_from_engine(payload)
