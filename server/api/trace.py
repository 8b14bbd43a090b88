"""The `trace` parameter: what may be asked for, and how much of it. It knows no way of tracing."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from server.api.validation import StrictModel
from server.engine.tracing_types import DEFAULT_TRACE_TOP, MAX_TRACE_TOP, TraceOptions
from server.engine.types import EngineInfo, SequenceRequest
from server.errors import BadRequest

# Numbers in the traces of one answer: with the words around them at most some fifteen megabytes of JSON.
MAX_TRACE_NUMBERS = 524_288

# Of a token, a stage and an expert, besides the candidates listed.
_PER_TOKEN, _PER_STAGE, _PER_EXPERT = 16, 3, 2
_PER_RAW_CANDIDATE, _PER_CANDIDATE = 3, 2


class TraceFields(StrictModel):
    """`trace` in a request; an empty object asks for the default."""

    top: Annotated[int, Field(ge=0, le=MAX_TRACE_TOP)] | None = None
    experts: bool | None = None
    attention: bool | None = None


def read_trace(asked: TraceFields | None, info: EngineInfo, has_beams: bool) -> TraceOptions | None:
    """What is traced, or None. Raises BadRequest for what the model has none of, and for beam search."""
    if asked is None:
        return None
    if has_beams:
        message = "trace is set, but beam search makes no choice that it could show; leave it out."
        raise BadRequest(message, "trace", "invalid_value")
    if asked.experts and not info.num_experts_per_token:
        message = "trace.experts is true, but this model has no mixture of experts."
        raise BadRequest(message, "trace.experts", "invalid_value")
    if asked.attention and not info.num_heads:
        message = "trace.attention is true, but this engine does not tell the attention of its model."
        raise BadRequest(message, "trace.attention", "invalid_value")
    top = DEFAULT_TRACE_TOP if asked.top is None else asked.top
    return TraceOptions(top, bool(asked.experts), bool(asked.attention))


def check_trace_size(info: EngineInfo, sequences: Sequence[SequenceRequest]) -> None:
    """Raises BadRequest when the traces of one answer could come to more than MAX_TRACE_NUMBERS."""
    wanted = sum(_num_numbers(info, one, one.trace) for one in sequences if one.trace is not None)
    if wanted > MAX_TRACE_NUMBERS:
        message = (
            f"trace asks for up to {wanted} numbers in one answer; the limit is {MAX_TRACE_NUMBERS}. "
            "Ask for fewer tokens (max_tokens), or for less of each."
        )
        raise BadRequest(message, "trace", "invalid_value")


def _num_numbers(info: EngineInfo, one: SequenceRequest, options: TraceOptions) -> int:
    """In the traces of a sequence of full length, whose every token attends to all before it."""
    num_prompt, num_tokens = len(one.prompt), one.params.max_tokens
    # The constraints and guidance come besides the stages that have a name in `samplers`.
    num_stages = len(one.params.stages) + 2
    per_token = _PER_TOKEN + _PER_RAW_CANDIDATE * options.top
    per_token += num_stages * (_PER_STAGE + _PER_CANDIDATE * options.top)
    if one.speculation.method != "off":
        per_token += one.speculation.num_tokens
    if options.experts:
        per_token += _PER_EXPERT * info.num_layers * info.num_experts_per_token
    if not options.attention:
        return num_tokens * per_token
    num_attended = num_tokens * num_prompt + num_tokens * (num_tokens - 1) // 2
    return num_tokens * per_token + info.num_layers * info.num_heads * num_attended
