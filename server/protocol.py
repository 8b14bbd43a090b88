"""What the HTTP process and the engine process say to each other, as tagged msgpack structs.

To the engine: Configure once, then Commands, and now and then Inspect. From it: Ready or Fatal once, then a StepReport
or more per step, the rare Refused, and an Inspected for each Inspect. Closing the connection is the only way to say
goodbye, and both sides take it as that. Models are numbered in the order Configure lists them. Knows no sockets.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from server.engine.config import EngineConfig
from server.engine.inspection import Inspection
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest, StepOutput
from server.framing import frame
from server.logs import LogFormat


class ModelSource(msgspec.Struct, frozen=True):
    """A model to serve: its public name, its checkpoint folder, and that of the model that drafts for it."""

    name: str
    path: str
    draft: str | None = None


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """All the engine process must know to load and run its models."""

    models: tuple[ModelSource, ...]
    engine: EngineConfig
    log_level: str = "info"
    log_format: LogFormat = "text"


class Addition(msgspec.Struct, frozen=True, array_like=True):
    """One sequence for one model."""

    model: int
    sequence: SequenceRequest


class Commands(msgspec.Struct, frozen=True, tag="commands"):
    """All that one turn of the event loop asks for. Additions come first: an abort may name one of them."""

    add: tuple[Addition, ...] = ()
    abort: tuple[int, ...] = ()


class Inspect(msgspec.Struct, frozen=True, tag="inspect"):
    """A question about one model's blocks, answered between two steps. The answer has the same ticket."""

    ticket: int
    model: int
    salt_prefix: str  # what is told of whom, see `inspection.inspect`
    limit: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Every model is loaded; one entry per configured model, in order."""

    models: tuple[EngineInfo, ...]


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The models cannot be served as configured; trying again would not help."""

    message: str


class PlainTokens(msgspec.Struct, frozen=True, array_like=True):
    """Outputs that only say tokens, as nearly all do: in columns, which cost a tenth of as many objects."""

    ids: tuple[int, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    num_cached_tokens: tuple[int, ...] = ()
    scheduled_at: tuple[float, ...] = ()

    @classmethod
    def of(cls, outputs: Sequence[SequenceOutput]) -> "PlainTokens":
        return cls(
            tuple([output.id for output in outputs]),
            tuple([output.tokens for output in outputs]),
            tuple([output.num_cached_tokens for output in outputs]),
            tuple([output.scheduled_at for output in outputs]),
        )


class StepReport(msgspec.Struct, frozen=True, tag="step"):
    """One step of one model's core. What one frame does not hold follows in further ones, whose stats repeat the gauges
    and count nothing. Outputs are in the step or, if they say so little, among the plain tokens."""

    model: int
    step: StepOutput
    plain: PlainTokens = PlainTokens()

    @classmethod
    def of(cls, model: int, step: StepOutput) -> "StepReport":
        """With every output where it takes the least room."""
        plain: list[SequenceOutput] = []
        others: list[SequenceOutput] = []
        for output in step.outputs:
            (plain if _is_plain(output) else others).append(output)
        return cls(model, replace(step, outputs=tuple(others)), PlainTokens.of(plain))


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Sequences the engine could not take; each ends with finish reason "error", its neighbours are untouched."""

    ids: tuple[int, ...]


class Inspected(msgspec.Struct, frozen=True, tag="inspected"):
    """The answer to one Inspect."""

    ticket: int
    inspection: Inspection


ToEngine = Configure | Commands | Inspect
FromEngine = Ready | Fatal | StepReport | Refused | Inspected

# Encoders and decoders are immutable tables built from the types above; building one per message would cost more than
# the message.
_ENCODER = msgspec.msgpack.Encoder()
_TO_ENGINE: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_FROM_ENGINE: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """The message as one frame. Raises FrameTooLarge."""
    return frame(_ENCODER.encode(message))


def _is_plain(output: SequenceOutput) -> bool:
    return bool(output.tokens) and not (
        output.finish_reason or output.num_drafted or output.logprobs or output.prompt_logprobs or output.traces
    )


def decode_to_engine(payload: bytes) -> ToEngine:
    """What the HTTP process sent. Raises msgspec.DecodeError."""
    return _TO_ENGINE.decode(payload)


def decode_from_engine(payload: bytes) -> FromEngine:
    """What the engine process sent. Raises msgspec.DecodeError."""
    return _FROM_ENGINE.decode(payload)
