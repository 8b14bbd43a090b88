"""What a client may send to /v1/completions, and what it shares with chat. Ranges of sampling parameters live below."""

from typing import Annotated

from pydantic import Field, PlainValidator

from server.api.fields import Prompt, read_logit_bias, read_prompts, read_stop_strings, read_token_ids
from server.api.validation import StrictModel
from server.engine.params import MAX_LOGPROBS, MAX_SEED, MAX_TOKEN_LIST

_MAX_INT = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=_MAX_INT)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def _token_list(name: str) -> PlainValidator:
    return PlainValidator(
        lambda value: None if value is None else read_token_ids(name, value, MAX_TOKEN_LIST),
        json_schema_input_type=list[int] | None,
    )


_STOP = PlainValidator(
    lambda value: () if value is None else read_stop_strings(value), json_schema_input_type=str | list[str] | None
)
_LOGIT_BIAS = PlainValidator(
    lambda value: None if value is None else read_logit_bias(value), json_schema_input_type=dict[str, float] | None
)
_PROMPT = PlainValidator(read_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])


class StreamOptions(StrictModel):
    """`include_usage` asks for a last chunk with the usage, `continuous_usage_stats` for the usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # OpenAI's padding against traffic analysis; never added here


class GenerationRequest(StrictModel):
    """The fields completions and chat share. None, sent or not, means the default."""

    model: str
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_INT)] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[tuple[tuple[int, float], ...] | None, _LOGIT_BIAS] = None
    allowed_token_ids: Annotated[tuple[int, ...] | None, _token_list("allowed_token_ids")] = None
    banned_token_ids: Annotated[tuple[int, ...] | None, _token_list("banned_token_ids")] = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None

    stop: Annotated[tuple[str, ...], _STOP] = ()
    stop_token_ids: Annotated[tuple[int, ...] | None, _token_list("stop_token_ids")] = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None

    prompt_logprobs: Logprobs | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    return_parameters: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[tuple[Prompt, ...], _PROMPT]
    echo: bool | None = None
    logprobs: Logprobs | None = None
