"""Checked list-shaped fields of request bodies. Each stops at its first fault and bounds the length before it looks.

Each takes what the parsed JSON holds and returns plain tuples; faults are BadRequest, naming element and limit.
"""

from collections.abc import Mapping, Sequence

from server.api.json_guard import shown
from server.api.settings import MAX_STOP_STRING_LENGTH, MAX_STOP_STRINGS
from server.engine.params import MAX_TOKEN_LIST
from server.engine.sampling.ranges import MAX_BAD_WORDS, MAX_SEQUENCE_TOKENS
from server.errors import BadRequest

# A breaker stands for every token that contains it, and each is looked for in the whole vocabulary.
MAX_SEQUENCE_BREAKERS = 16

Prompt = str | tuple[int, ...]


def read_prompts(value: object) -> tuple[Prompt, ...]:
    """A string, token ids, or an array of either, as `prompt` allows. How many there may be is the settings' matter."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _invalid("prompt", value, "a string, an array of token ids, or an array of either")
    if not value:
        raise BadRequest("prompt is an empty array; it must hold at least one prompt.", "prompt", "invalid_value")
    if type(value[0]) is int:
        return (read_token_ids("prompt", value),)
    return tuple(_read_prompt(f"prompt[{index}]", item) for index, item in enumerate(value))


def read_token_ids(parameter: str, value: object, limit: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _invalid(parameter, value, "an array of token ids")
    _check_length(parameter, value, limit)
    if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) >= 2**31):
        index, item = next(pair for pair in enumerate(value) if type(pair[1]) is not int or not 0 <= pair[1] < 2**31)
        raise _invalid(f"{parameter}[{index}]", item, f"a token id between 0 and {2**31 - 1}")
    return tuple(value)


def read_stop_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_read_text("stop", value),)
    if not isinstance(value, list):
        raise _invalid("stop", value, "a string or an array of strings")
    return read_strings("stop", value, MAX_STOP_STRINGS)


def read_strings(parameter: str, value: object, limit: int) -> tuple[str, ...]:
    """Strings that are neither empty nor long."""
    if not isinstance(value, list):
        raise _invalid(parameter, value, "an array of strings")
    _check_length(parameter, value, limit)
    return tuple(_read_text(f"{parameter}[{index}]", item) for index, item in enumerate(value))


def read_bad_words(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Strings, or arrays of token ids."""
    if not isinstance(value, list):
        raise _invalid("bad_words", value, "an array of strings and arrays of token ids")
    _check_length("bad_words", value, MAX_BAD_WORDS)
    return tuple(_read_word(f"bad_words[{index}]", item) for index, item in enumerate(value))


def read_logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    """Keys are token ids in canonical decimals ("7", not "07": one token, one key)."""
    if not isinstance(value, Mapping):
        raise _invalid("logit_bias", value, "an object from token id to bias")
    _check_length("logit_bias", value, MAX_TOKEN_LIST)
    pairs = []
    for key, bias in value.items():
        canonical = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10
        if not canonical or str(int(key)) != key:
            raise BadRequest(
                f"logit_bias has the key {shown(key)}; it must be a token id.", "logit_bias", "invalid_value"
            )
        if type(bias) not in (int, float) or abs(bias) > 1e9:  # the sampling parameters know the true limit
            raise _invalid(f"logit_bias[{key}]", bias, "a number between -100 and 100")
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


def _read_prompt(parameter: str, value: object) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return read_token_ids(parameter, value)
    raise _invalid(parameter, value, "a string or an array of token ids")


def _read_text(parameter: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid(parameter, value, "a string of at least one character")
    if len(value) > MAX_STOP_STRING_LENGTH:
        raise BadRequest(
            f"{parameter} has {len(value)} characters; the limit is {MAX_STOP_STRING_LENGTH}.",
            parameter,
            "invalid_value",
        )
    return value


def _read_word(parameter: str, value: object) -> str | tuple[int, ...]:
    if isinstance(value, list) and value:
        return read_token_ids(parameter, value, MAX_SEQUENCE_TOKENS)
    if isinstance(value, str):
        return _read_text(parameter, value)
    raise _invalid(parameter, value, "a string or an array of at least one token id")


def _check_length(parameter: str, value: Sequence[object] | Mapping[object, object], limit: int | None) -> None:
    if limit is not None and len(value) > limit:
        raise BadRequest(f"{parameter} has {len(value)} entries; the limit is {limit}.", parameter, "invalid_value")


def _invalid(parameter: str, value: object, expected: str) -> BadRequest:
    return BadRequest(f"{parameter} is {shown(value)}; it must be {expected}.", parameter, "invalid_value")
