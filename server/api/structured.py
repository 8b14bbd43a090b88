"""The shapes in which clients ask for structured output, to the one constraint the engine knows. Compiles nothing.

OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, and SGLang's plain names say the same things.
"""

import json
import re
from collections.abc import Callable, Mapping

from server.api.json_guard import parse_json_object, shown
from server.api.validation import StrictModel
from server.engine.grammar_spec import Grammar, GrammarError, GrammarKind
from server.errors import BadRequest

MAX_CHOICES = 1_024
MAX_NESTING = 64
MAX_REPETITIONS = 10_000
_MAX_NAME_LENGTH = 64
_ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
_ESCAPE_OR_BRACKET = re.compile(r"\\.|[()\[\]{}]", re.DOTALL)
# Blanks may stand in a repetition, and no braces of an escape are one.
_ESCAPE_OR_REPETITION = re.compile(r"\\(?:[xuUpP]\{[^}]*\}|.)|\{([\d\s,]+)\}", re.DOTALL)


class StructuredFields(StrictModel):
    """The fields that ask for structured output; `read_grammar` checks what they hold. At most one may be given."""

    response_format: object = None
    structured_outputs: object = None
    json_schema: object = None
    json_object: object = None
    regex: object = None
    choice: object = None
    grammar: object = None
    guided_json: object = None
    guided_regex: object = None
    guided_choice: object = None
    guided_grammar: object = None


_NAMES = tuple(StructuredFields.model_fields)


def read_grammar(asked: StructuredFields) -> Grammar | None:
    """The constraint a request asks for, or None. Raises BadRequest naming the field, what it holds and the limit."""
    constraining = _constraining(asked)
    if len(constraining) > 1:
        first, second, *_ = constraining
        message = f"{second} is given besides {first}; at most 1 of the fields for structured output may be."
        raise BadRequest(message, second, "invalid_value")
    return next(iter(constraining.values()), None)


def grammar_refused(asked: StructuredFields, reason: str) -> BadRequest:
    """What the engine says of the request's grammar, as the client's mistake in the field that holds it."""
    (name,) = _constraining(asked)
    return BadRequest(f"{name} {reason}.", name, "invalid_grammar")


def _constraining(asked: StructuredFields) -> dict[str, Grammar]:
    """The fields that ask for a grammar, which not every one does that is given."""
    if asked.model_fields_set.isdisjoint(_NAMES):
        return {}
    given = {name: value for name in _NAMES if (value := getattr(asked, name)) is not None}
    read = {name: _READERS[name](name, value) for name, value in given.items()}
    return {name: grammar for name, grammar in read.items() if grammar is not None}


def _read_response_format(name: str, value: object) -> Grammar | None:
    fields = _object(name, value)
    match fields.get("type"):
        case "text":
            _check_keys(name, fields, {"type"})
            return None
        case "json_object":
            _check_keys(name, fields, {"type"})
            return _ANY_OBJECT
        case "json_schema":
            _check_keys(name, fields, {"type", "json_schema"})
            return _read_named_schema(f"{name}.json_schema", fields.get("json_schema"))
    raise _invalid(f"{name}.type", fields.get("type"), '"text", "json_object" or "json_schema"')


def _read_named_schema(name: str, value: object) -> Grammar:
    """OpenAI's wrapper. `strict` changes nothing: answers always follow the schema."""
    fields = _object(name, value)
    _check_keys(name, fields, {"name", "description", "schema", "strict"})
    title = fields.get("name")
    if not isinstance(title, str) or not 1 <= len(title) <= _MAX_NAME_LENGTH:
        raise _invalid(f"{name}.name", title, f"a string of 1 to {_MAX_NAME_LENGTH} characters")
    for key, kind, expected in (("description", str, "a string"), ("strict", bool, "a boolean")):
        if not isinstance(fields.get(key), kind | None):
            raise _invalid(f"{name}.{key}", fields[key], expected)
    return _read_schema(f"{name}.schema", fields.get("schema"))


def _read_structured_outputs(name: str, value: object) -> Grammar | None:
    fields = {key: held for key, held in _object(name, value).items() if held is not None}
    _check_keys(name, fields, set(_OUTPUTS))
    if len(fields) != 1:
        raise BadRequest(f"{name} has {len(fields)} entries; it must have exactly 1.", name, "invalid_value")
    ((key, held),) = fields.items()
    return _OUTPUTS[key](f"{name}.{key}", held)


def _read_schema(name: str, value: object) -> Grammar:
    schema = _parse_schema(name, value) if isinstance(value, str) else value
    if not isinstance(schema, dict):
        raise _invalid(name, value, "a JSON schema, as an object")
    if "x-guidance" in schema:
        raise BadRequest(f"{name}.x-guidance is not supported.", name, "unsupported_value")
    return _grammar(name, "json_schema", json.dumps(schema, ensure_ascii=False))


def _parse_schema(name: str, text: str) -> dict[str, object]:
    try:
        return parse_json_object(text.encode(errors="replace"))
    except BadRequest as error:
        about = error.message.removeprefix("The body ")
        told = f"{name}: {about}" if about == error.message else f"{name} {about}"
        raise BadRequest(told, name, "invalid_value") from None


def _read_flag(name: str, value: object) -> Grammar | None:
    if not isinstance(value, bool):
        raise _invalid(name, value, "a boolean")
    return _ANY_OBJECT if value else None


def _read_regex(name: str, value: object) -> Grammar:
    text = _text(name, value)
    _check_nesting(name, text)
    for match in _ESCAPE_OR_REPETITION.finditer(text):
        counts = "".join((match[1] or "").split()).split(",")
        if any(len(count) > 9 or int(count) > MAX_REPETITIONS for count in counts if count):
            message = f"{name} repeats {shown(match[0])} times; the limit is {MAX_REPETITIONS}."
            raise BadRequest(message, name, "invalid_value")
    return _grammar(name, "regex", text)


def _read_choice(name: str, value: object) -> Grammar:
    if not isinstance(value, list) or not value:
        raise _invalid(name, value, "an array of at least one string")
    if len(value) > MAX_CHOICES:
        raise BadRequest(f"{name} has {len(value)} entries; the limit is {MAX_CHOICES}.", name, "invalid_value")
    for index, item in enumerate(value):
        _text(f"{name}[{index}]", item)
    return _grammar(name, "choice", json.dumps(value, ensure_ascii=False))


def _read_lark(name: str, value: object) -> Grammar:
    return _grammar(name, "grammar", _text(name, value))


def _grammar(name: str, kind: GrammarKind, text: str) -> Grammar:
    try:
        return Grammar(kind, text)
    except GrammarError as error:
        raise BadRequest(f"{name} {error}.", name, "invalid_value") from None


def _check_nesting(name: str, text: str) -> None:
    """Open brackets, those in a class of characters included."""
    depth = 0
    for bracket in _ESCAPE_OR_BRACKET.findall(text):
        depth = max(0, depth + (bracket in "([{") - (bracket in ")]}"))
        if depth > MAX_NESTING:
            raise BadRequest(f"{name} is nested more than {MAX_NESTING} levels deep.", name, "invalid_value")


def _object(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _invalid(name, value, "an object")
    return value


def _check_keys(name: str, fields: Mapping[str, object], known: set[str]) -> None:
    for key in fields:
        if key not in known:
            raise BadRequest(f"Unknown parameter: {shown(f'{name}.{key}')}.", f"{name}.{key[:80]}", "unknown_parameter")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid(name, value, "a string of at least one character")
    return value


def _invalid(name: str, value: object, expected: str) -> BadRequest:
    return BadRequest(f"{name} is {shown(value)}; it must be {expected}.", name, "invalid_value")


_Reader = Callable[[str, object], Grammar | None]
_OUTPUTS: Mapping[str, _Reader] = {
    "json": _read_schema,
    "json_object": _read_flag,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_lark,
}
_READERS: Mapping[str, _Reader] = {
    "response_format": _read_response_format,
    "structured_outputs": _read_structured_outputs,
    "json_schema": _read_schema,
    "json_object": _read_flag,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_lark,
    "guided_json": _read_schema,
    "guided_regex": _read_regex,
    "guided_choice": _read_choice,
    "guided_grammar": _read_lark,
}
