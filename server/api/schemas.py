"""What a client may send to /v1/completions, and what it shares with chat. Ranges of sampling parameters live below.

The fields of sampling parameters are made from SamplingParams: a new one there is a new one here.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, get_type_hints

from pydantic import Field, PlainValidator, create_model

from server.api.fields import (
    MAX_SEQUENCE_BREAKERS,
    Prompt,
    read_bad_words,
    read_logit_bias,
    read_prompts,
    read_stop_strings,
    read_strings,
    read_token_ids,
)
from server.api.schemas_decoding import BeamFields, GuidanceFields
from server.api.speculative import SpeculativeOptions
from server.api.structured import StructuredFields
from server.api.trace import TraceFields
from server.api.validation import StrictModel
from server.engine.params import MAX_LOGPROBS, MAX_TOKEN_LIST, SamplingParams
from server.engine.sampling.order import SAMPLERS
from server.engine.sampling.ranges import RANGES

_MAX_INT = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=_MAX_INT)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]

# Sampling parameters that are no field of that meaning in both kinds of request: they are written out below.
_WRITTEN_OUT = frozenset({"max_tokens", "logprobs", "prompt_logprobs"})
_OTHER_NAMES = {
    "allowed_tokens": "allowed_token_ids",
    "banned_tokens": "banned_token_ids",
    "dry_breakers": "dry_sequence_breakers",
}

FIELDS: Mapping[str, str] = {
    name: _OTHER_NAMES.get(name, name) for name in get_type_hints(SamplingParams) if name not in _WRITTEN_OUT
}
"""The request's field for each sampling parameter."""
_PARAMETERS = {field: name for name, field in FIELDS.items()}


def _reader(read: Callable[[object], object], json_type: object) -> object:
    """A field that `read` checks; null is as good as nothing."""
    validator = PlainValidator(
        lambda value: None if value is None else read(value),
        json_schema_input_type=json_type | None,  # type: ignore[operator]
    )
    return Annotated[object, validator]


def _token_list(name: str) -> object:
    return _reader(lambda value: read_token_ids(name, value, MAX_TOKEN_LIST), list[int])


_LISTS: Mapping[str, object] = {
    "logit_bias": _reader(read_logit_bias, dict[str, float]),
    "allowed_tokens": _token_list("allowed_token_ids"),
    "banned_tokens": _token_list("banned_token_ids"),
    "stop_token_ids": _token_list("stop_token_ids"),
    "bad_words": _reader(read_bad_words, list[str | list[int]]),
    "dry_breakers": _reader(
        lambda value: read_strings("dry_sequence_breakers", value, MAX_SEQUENCE_BREAKERS), list[str]
    ),
    "samplers": _reader(lambda value: read_strings("samplers", value, len(SAMPLERS)), list[str]),
}


def _field_type(name: str, hint: object) -> object:
    """Integers are bounded here already, as no one should wait for arithmetic with a thousand digits."""
    if name in _LISTS:
        return _LISTS[name]
    if hint is int:
        low = -1 if name == "top_k" else int(RANGES[name].low)  # others call "every token" -1
        return Annotated[int, Field(ge=low, le=int(RANGES[name].high))] | None
    return hint | None  # type: ignore[operator]


if TYPE_CHECKING:
    SamplingFields = StrictModel  # the type checker cannot follow how they are made, and nobody reads them by name
else:
    SamplingFields = create_model(
        "SamplingFields",
        __base__=StrictModel,
        **{
            FIELDS[name]: (_field_type(name, hint), None)
            for name, hint in get_type_hints(SamplingParams).items()
            if name in FIELDS
        },
    )

_STOP = PlainValidator(
    lambda value: () if value is None else read_stop_strings(value), json_schema_input_type=str | list[str] | None
)
_PROMPT = PlainValidator(
    lambda value: () if value is None else read_prompts(value),
    json_schema_input_type=str | list[str] | list[int] | list[list[int]] | None,
)


class StreamOptions(StrictModel):
    """`include_usage` asks for a last chunk with the usage, `continuous_usage_stats` for the usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # OpenAI's padding against traffic analysis; never added here


class GenerationRequest(BeamFields, GuidanceFields, StructuredFields, SamplingFields):
    """The fields completions and chat share. None, sent or not, means the default."""

    model: str
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    strategy: str | None = None

    stop: Annotated[tuple[str, ...], _STOP] = ()
    include_stop_str_in_output: bool | None = None

    prompt_logprobs: Logprobs | None = None
    speculative: SpeculativeOptions | None = None
    trace: TraceFields | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    return_parameters: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None


def asked_parameters(request: GenerationRequest) -> Mapping[str, object]:
    """The sampling parameters a request sets, by their names in SamplingParams."""
    sent = {_PARAMETERS[field]: getattr(request, field) for field in request.model_fields_set if field in _PARAMETERS}
    own = {name: value for name, value in sent.items() if value is not None}
    if own.get("top_k") == -1:  # others call "every token" so
        own["top_k"] = 0
    return own


def asked_seed(request: GenerationRequest) -> int | None:
    seed = asked_parameters(request).get("seed")
    assert seed is None or isinstance(seed, int)
    return seed


class Fork(StrictModel):
    """Where in an earlier answer to go on: behind the first `at_token` tokens of one of its choices."""

    id: Annotated[str, Field(max_length=128)]
    choice: Count = 0
    at_token: Count


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. Either a prompt, or a fork in its place."""

    prompt: Annotated[tuple[Prompt, ...], _PROMPT] = ()
    fork: Fork | None = None
    echo: bool | None = None
    logprobs: Logprobs | None = None
