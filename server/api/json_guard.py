"""Strict JSON within bounds: what the standard parser lets through is refused here. It knows no schema and no HTTP."""

import json
import math
import re
from collections import Counter

from server.errors import BadRequest

MAX_DEPTH = 32
# Strings, arrays and objects in one body: "{}," is 3 bytes on the wire and 64 in memory, and each takes time to scan.
MAX_ITEMS = 131_072
# Values of every kind, numbers too: each is 2 bytes on the wire, and up to 40 in memory. Enough for 64 prompts of 8,192
# token ids.
MAX_VALUES = 524_288
MAX_KEYS = 2_048  # in one object; more than any parameter may hold
_MAX_SHOWN = 80

# A whole string, ended or not, or one bracket. Possessive, and an unended string runs to the end of the text, so the
# scan is linear whatever is sent.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def parse_json_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`. Raises BadRequest (code invalid_json, or invalid_value for a non-finite number)."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"The body is not valid UTF-8 at byte {error.start}.") from None
    _check_nesting(text)
    value = _parse(text)
    if not isinstance(value, dict):
        raise _invalid(f"The body must be a JSON object; it is {_kind(value)}.")
    if "\\u" in text and _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def shown(value: object) -> str:
    """`value` as an error message quotes it: bounded, whatever was sent."""
    if isinstance(value, list | dict):
        return f"{_kind(value)} of {len(value)}"
    if isinstance(value, str):
        value = value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "..."
        return json.dumps(value)
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value, default=str)


def _parse(text: str) -> object:
    if text.startswith("\ufeff"):  # the decoder alone would only expect a value there
        raise _invalid("The body is not valid JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at character 0.")
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"The body is not valid JSON: {error.msg} at character {error.pos}.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise _invalid(f"The body is not valid JSON: {error}.") from None
    return value


def _check_nesting(text: str) -> None:
    """Depth and number of items and values, before the parser recurses into or allocates any of them."""
    num_brackets = text.count("[") + text.count("{")
    if num_brackets <= MAX_DEPTH and num_brackets + text.count('"') <= MAX_ITEMS and text.count(",") < MAX_VALUES:
        return  # as of nearly every body
    depth = num_items = end = 0
    # Scalars are counted by the commas between them, without being looked at one by one.
    num_values = 1
    for match in _TOKEN.finditer(text):
        num_values += text.count(",", end, match.start())
        end = match.end()
        _check_num_values(num_values)
        first = text[match.start()]
        if first in "]}":
            depth -= 1
            if depth < 0:
                return  # the parser gets no further than here either, and says it better
            continue
        num_items += 1
        depth += first != '"'
        if depth > MAX_DEPTH:
            raise _invalid(f"The body is nested more than {MAX_DEPTH} levels deep.")
        if num_items > MAX_ITEMS:
            raise _invalid(f"The body holds more than {MAX_ITEMS} strings, arrays and objects.")
    _check_num_values(num_values + text.count(",", end))


def _check_num_values(num_values: int) -> None:
    if num_values > MAX_VALUES:
        raise _invalid(f"The body holds more than {MAX_VALUES} values.")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) > MAX_KEYS:
        raise _invalid(f"An object has {len(pairs)} keys; the limit is {MAX_KEYS}.")
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        parameter = twice[:_MAX_SHOWN].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be answered
        raise BadRequest(f"The key {shown(twice)} appears twice in one object.", parameter, "invalid_json")
    return result


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise BadRequest(f"The number {literal[:_MAX_SHOWN]} is not finite.", None, "invalid_value")
    return value


def _refuse_constant(literal: str) -> float:
    raise BadRequest(f"{literal} is not a JSON number; numbers must be finite.", None, "invalid_value")


# As json.loads makes one for every text that it gets such arguments with.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant)


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("A string holds half of a surrogate pair, which is not text.") from None


def _kind(value: object) -> str:
    names: tuple[tuple[type, str], ...] = (
        (dict, "an object"),
        (list, "an array"),
        (str, "a string"),
        (bool, "a boolean"),
        (int, "a number"),
        (float, "a number"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, None, "invalid_json")
