"""Every limit in force, with the parameter or the command-line flag that each belongs to. It enforces none of them."""

from collections.abc import Iterator, Mapping

from msgspec import UNSET, Struct, UnsetType

from server.api.admission import MAX_CANDIDATES
from server.api.compare_request import MAX_NAME_LENGTH, MAX_STRATEGIES
from server.api.fields import MAX_SEQUENCE_BREAKERS
from server.api.instruments import Instruments
from server.api.json_guard import MAX_DEPTH, MAX_ITEMS, MAX_KEYS, MAX_VALUES
from server.api.recent import MAX_ANSWERS, MAX_TOKENS
from server.api.schemas import CompletionRequest
from server.api.service import Service
from server.api.settings import (
    LONG_TEXT,
    MAX_BYTES_BEING_READ,
    MAX_CONTENT_PARTS,
    MAX_MESSAGES,
    MAX_STOP_STRING_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOKENIZE_BYTES,
    READ_BODY_SECONDS,
)
from server.api.structured import MAX_CHOICES as MAX_GRAMMAR_CHOICES
from server.api.structured import MAX_NESTING, MAX_REPETITIONS
from server.api.trace import MAX_TRACE_NUMBERS
from server.engine.grammar_spec import MAX_GRAMMAR_BYTES
from server.engine.sampling.ranges import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_SEQUENCE_TOKENS,
    MAX_TOKEN_LIST,
    RANGES,
    Range,
)
from server.engine.tracing_types import MAX_TRACE_TOP
from server.engine.types import (
    DIVERSITY_PENALTIES,
    GUIDANCE_SCALES,
    LENGTH_PENALTIES,
    MAX_BEAMS,
    MAX_DRAFT_TOKENS,
    EngineInfo,
)
from server.inspections import ANSWER_SECONDS
from server.timeline import MAX_SECONDS, MAX_STEPS

MAX_LISTED = 4_096  # entries in each list of /v1/engine/blocks, and block ids

# Fields of requests that share another's range, or that the server reads a little wider than the engine.
_SAME_RANGE = {"max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}
_WIDER = {"top_k": Range(-1, RANGES["top_k"].high)}  # others call "every token" -1
# Of a search, which checks them itself.
_BEAM_RANGES = {"length_penalty": LENGTH_PENALTIES, "diversity_penalty": DIVERSITY_PENALTIES}


class Limit(Struct):
    """What may be at most (and at least) `max` (`min`; `above_min`: not itself)."""

    name: str
    max: float
    min: float | UnsetType = UNSET
    above_min: bool | UnsetType = UNSET
    parameter: str | UnsetType = UNSET  # of a request
    flag: str | UnsetType = UNSET  # of the command line, that changes it


class Limits(Struct):
    """The body of the answer: by what each limit is about."""

    body: list[Limit]
    lists: list[Limit]
    parameters: list[Limit]
    server: list[Limit]
    models: dict[str, list[Limit]]  # only those that have been loaded
    object: str = "limits"


def all_limits(service: Service, instruments: Instruments) -> Limits:
    return Limits(
        body=_body_limits(service),
        lists=[*_list_limits(service), *_text_limits()],
        parameters=list(_parameter_limits(service)),
        server=_server_limits(instruments),
        models={name: _model_limits(info) for name, info in service.engine.models().items()},
    )


def _body_limits(service: Service) -> list[Limit]:
    return [
        Limit("body_bytes", service.settings.max_body_bytes, flag="--max-body-bytes"),
        Limit("json_depth", MAX_DEPTH),
        Limit("json_items", MAX_ITEMS),
        Limit("json_values", MAX_VALUES),
        Limit("json_keys", MAX_KEYS),
        Limit("read_seconds", READ_BODY_SECONDS),
        Limit("bytes_being_read", MAX_BYTES_BEING_READ),
        Limit("tokenize_bytes", MAX_TOKENIZE_BYTES),
    ]


def _list_limits(service: Service) -> list[Limit]:
    settings = service.settings
    return [
        Limit("prompts", settings.max_prompts, parameter="prompt", flag="--max-prompts"),
        Limit("sequences", settings.max_sequences, parameter="n", flag="--max-sequences"),
        Limit("messages", MAX_MESSAGES, parameter="messages"),
        Limit("content_parts", MAX_CONTENT_PARTS, parameter="messages"),
        Limit("stop_strings", MAX_STOP_STRINGS, parameter="stop"),
        Limit("stop_string_characters", MAX_STOP_STRING_LENGTH, parameter="stop"),
        Limit("biased_tokens", MAX_TOKEN_LIST, parameter="logit_bias"),
        Limit("allowed_tokens", MAX_TOKEN_LIST, parameter="allowed_token_ids"),
        Limit("banned_tokens", MAX_TOKEN_LIST, parameter="banned_token_ids"),
        Limit("stop_tokens", MAX_TOKEN_LIST, parameter="stop_token_ids"),
        Limit("bad_words", MAX_BAD_WORDS, parameter="bad_words"),
        Limit("bad_word_tokens", MAX_SEQUENCE_TOKENS, parameter="bad_words"),
        Limit("sequence_breakers", MAX_SEQUENCE_BREAKERS, parameter="dry_sequence_breakers"),
        Limit("candidates", MAX_CANDIDATES, parameter="logprobs"),
        Limit("trace_numbers", MAX_TRACE_NUMBERS, parameter="trace"),
        Limit("negative_prompt_characters", LONG_TEXT, parameter="negative_prompt"),
        Limit("strategies", MAX_STRATEGIES, 1, parameter="strategies"),
        Limit("seeds", MAX_STRATEGIES, 1, parameter="seeds"),
        Limit("strategy_name_characters", MAX_NAME_LENGTH, 1, parameter="strategies"),
        Limit("remembered_answers", MAX_ANSWERS, parameter="fork"),
        Limit("remembered_tokens", MAX_TOKENS, parameter="fork"),
        Limit("grammar_bytes", MAX_GRAMMAR_BYTES, parameter="grammar"),
        Limit("grammar_choices", MAX_GRAMMAR_CHOICES, parameter="choice"),
        Limit("regex_nesting", MAX_NESTING, parameter="regex"),
        Limit("regex_repetitions", MAX_REPETITIONS, parameter="regex"),
    ]


def _text_limits() -> Iterator[Limit]:
    """Characters in the plain strings of a request, as its schema says."""
    properties = CompletionRequest.model_json_schema()["properties"]
    for name, schema in properties.items():
        for option in schema.get("anyOf", (schema,)):
            if "maxLength" in option:
                yield Limit(f"{name}_characters", option["maxLength"], parameter=name)


def _parameter_limits(service: Service) -> Iterator[Limit]:
    yield Limit("n", service.settings.max_choices, 1, parameter="n", flag="--max-choices")
    yield Limit("beam_width", MAX_BEAMS, 1, parameter="beam_width")
    yield Limit("num_beam_groups", MAX_BEAMS, 1, parameter="num_beam_groups")
    for name, allowed in (*_BEAM_RANGES.items(), ("guidance_scale", GUIDANCE_SCALES)):
        yield _of_range(name, allowed)
    yield Limit("speculative.num_tokens", MAX_DRAFT_TOKENS, 1, parameter="speculative")
    yield Limit("trace.top", MAX_TRACE_TOP, 0, parameter="trace")
    yield Limit("logit_bias", MAX_LOGIT_BIAS, -MAX_LOGIT_BIAS, parameter="logit_bias")
    ranges: Mapping[str, Range] = {**RANGES, **_WIDER, **{name: RANGES[same] for name, same in _SAME_RANGE.items()}}
    for name, allowed in ranges.items():
        yield _of_range(name, allowed)


def _of_range(name: str, allowed: Range) -> Limit:
    return Limit(name, allowed.high, allowed.low, allowed.above or UNSET, parameter=name)


def _server_limits(instruments: Instruments) -> list[Limit]:
    queue, engine = instruments.queue, instruments.engine
    return [
        Limit("waiting_sequences", queue.max_waiting, flag="--max-queue"),
        Limit("open_sequences", queue.max_open),
        Limit("running_sequences", engine.max_running, flag="--max-running"),
        Limit("step_tokens", engine.max_step_tokens, flag="--max-step-tokens"),
        Limit("timeline_seconds", MAX_SECONDS, parameter="seconds"),
        Limit("timeline_steps", MAX_STEPS),
        Limit("blocks_listed", MAX_LISTED, 1, parameter="limit"),
        Limit("inspection_seconds", ANSWER_SECONDS),
    ]


def _model_limits(info: EngineInfo) -> list[Limit]:
    return [
        Limit("context_length", info.context_length, parameter="max_tokens"),
        Limit("token_id", info.vocab_size - 1, 0, parameter="prompt"),
        Limit("blocks", info.num_blocks, flag="--num-blocks"),
    ]
