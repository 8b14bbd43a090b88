"""Grammars in llguidance's own notation, and the limits it works under. Imports llguidance, so import this lazily."""

import json
import re

from llguidance import LLParserLimits, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from server.engine.grammar_spec import Grammar, GrammarError

# At most one space or line break between tokens of JSON: a weak model would fill its answer with more.
_WHITESPACE = r"[ \n]?"
# Without this, text that the grammar forces must be written in the tokenizer's own tokens: then a mask would depend on
# more than the bytes so far, and every way to write an answer must stay open to the sampler.
_NO_FORCING = '%llguidance {"no_forcing": true}\n'
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REGEX_SIGNS = re.compile(r"[\\.+*?()|\[\]{}^$]")
_MAX_SHOWN = 200


def parser_limits() -> LLParserLimits:
    """Work counters of the compiler and of every mask, so that what is too complex fails alike on every machine.

    Repetitions are unrolled at the first mask that meets them, on `initial_lexer_fuel`: 50,000 keeps that mask in the
    tens of milliseconds, the default of a million let it take 1.6 s. Unicode classes such as \\pL need 25,000 of
    `step_lexer_fuel`. `precompute_large_lexemes` would make compiling depend on the vocabulary.
    """
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=50_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=10_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def to_source(grammar: Grammar) -> str:
    """Lark's notation. Raises GrammarError for text that is not of its kind; most faults only show when compiled."""
    try:
        return _NO_FORCING + _to_lark(grammar)
    except GrammarError:
        raise
    except Exception as error:  # what the converter of GBNF raises is no narrower
        raise GrammarError(reason(str(error))) from error


def reason(message: str) -> str:
    """An error of llguidance's as one bounded line, without its dumps of state."""
    lines = [line.strip() for line in message.splitlines()] or [""]
    if lines[0].startswith("NoExtension"):
        return "can never be satisfied"
    if lines[0].startswith("Unsatisfiable"):
        return f"can never be satisfied: {lines[0][:_MAX_SHOWN]}"
    detail = next((f" ({line[:_MAX_SHOWN]})" for line in lines if line.startswith("error: ")), "")
    return f"cannot be used: {lines[0][:_MAX_SHOWN]}{detail}"


def _to_lark(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            return f"start: %json {json.dumps(_with_whitespace(json.loads(grammar.text)))}"
        case "regex":
            return _regex_to_lark(grammar.text)
        case "choice":
            choices: list[str] = json.loads(grammar.text)
            return _regex_to_lark("|".join(map(_literally, choices)))
    if "%llguidance" in grammar.text:
        raise GrammarError("cannot be used: it holds %llguidance, which sets options of the compiler")
    return any_to_lark(grammar.text) if "::=" in grammar.text else grammar.text


def _with_whitespace(schema: object) -> dict[str, object]:
    _refuse_narrow_ranges(schema)
    if not isinstance(schema, dict):
        schema = {} if schema is True else {"allOf": [schema]}
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}


def _refuse_narrow_ranges(schema: object) -> None:
    """llguidance 1.9 lets 24 pass as above 24 when the other bound is below 25, and likewise mirrored."""
    if isinstance(schema, list):
        for item in schema:
            _refuse_narrow_ranges(item)
    if not isinstance(schema, dict):
        return
    bounds = {name: value for name in _BOUNDS if isinstance(value := schema.get(name), int | float)}
    is_exclusive = any(name.startswith("exclusive") for name in bounds)
    if is_exclusive and len(bounds) > 1 and max(bounds.values()) - min(bounds.values()) < 1:
        raise GrammarError("cannot be used: an exclusive bound needs the other bound at least 1 away")
    for value in schema.values():
        _refuse_narrow_ranges(value)


def _regex_to_lark(regex: str) -> str:
    r"""As in JSON Schema, \d and \w are ASCII, so that every client's checker agrees they are digits and letters."""
    return f"start: /{regex_to_lark(regex, 'dw')}/"


def _literally(text: str) -> str:
    return "(?:" + _REGEX_SIGNS.sub(r"\\\g<0>", text) + ")"
