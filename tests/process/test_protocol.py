"""The wire: what one side says is what the other hears, and nothing malformed gets through."""

import msgspec
import pytest
from fake_core import INFO, FakeCore, request

from server.engine.config import EngineConfig
from server.engine.params import MAX_SEED, SamplingParams
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
