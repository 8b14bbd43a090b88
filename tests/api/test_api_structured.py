"""What clients may send for structured output, and what each shape becomes."""

import json

import pytest

from server.api.structured import MAX_CHOICES, MAX_NESTING, StructuredFields, grammar_refused, read_grammar
from server.api.validation import validate
from server.engine.grammar_spec import MAX_GRAMMAR_BYTES, Grammar
from server.errors import BadRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_SCHEMA = Grammar("json_schema", json.dumps(SCHEMA))
ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')


def read(**body: object) -> Grammar | None:
    return read_grammar(validate(StructuredFields, body))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, AS_SCHEMA),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "description": "d", "strict": True, "schema": SCHEMA},
                }
            },
            AS_SCHEMA,
        ),
        ({"json_schema": SCHEMA}, AS_SCHEMA),
        ({"guided_json": SCHEMA}, AS_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, AS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, AS_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"json_object": True}, ANY_OBJECT),
        ({"json_object": False}, None),
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"structured_outputs": {"regex": r"\{99999999}"}}, Grammar("regex", r"\{99999999}")),
        ({"choice": ["é", "no"]}, Grammar("choice", '["é", "no"]')),
        ({"guided_choice": ["a"]}, Grammar("choice", '["a"]')),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar("choice", '["a"]')),
        ({"grammar": 'start: "a"'}, Grammar("grammar", 'start: "a"')),
        ({"guided_grammar": 'start: "a"'}, Grammar("grammar", 'start: "a"')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("grammar", 'start: "a"')),
        ({"response_format": {"type": "text"}, "regex": "a"}, Grammar("regex", "a")),
    ],
)
def test_every_spelling_of_a_constraint_becomes_the_same_value(body: dict[str, object], expected: object) -> None:
    assert read(**body) == expected


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", '"xml"'),
        ({"response_format": {}}, "response_format.type", "null"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "Unknown"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "1 to 64",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "JSON schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 1}}},
            "response_format.json_schema.strict",
            "boolean",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly 1"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "exactly 1"),
        ({"structured_outputs": {"backend": "x"}}, "structured_outputs.backend", "Unknown"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "3"),
        ({"guided_json": "nope"}, "guided_json", "guided_json is not valid JSON"),
        ({"json_schema": "{"}, "json_schema", "json_schema is not valid JSON"),
        ({"json_schema": "[]"}, "json_schema", "json_schema must be a JSON object"),
        ({"structured_outputs": {"json": '{"a": NaN}'}}, "structured_outputs.json", "NaN"),
        ({"guided_json": {"x-guidance": {}}}, "guided_json", "x-guidance"),
        ({"json_object": "yes"}, "json_object", "boolean"),
        ({"regex": ""}, "regex", "at least one character"),
        ({"regex": "a{1000000}"}, "regex", "10000"),
        ({"regex": "a{2,1000000000000}"}, "regex", "10000"),
        ({"regex": "a{ 20000 }"}, "regex", "10000"),
        ({"regex": "a{2, 2 0000}"}, "regex", "10000"),
        ({"regex": r"a\\{20000}"}, "regex", "10000"),
        ({"regex": r"\x{61}{20000}"}, "regex", "10000"),
        ({"regex": "(" * (MAX_NESTING + 1)}, "regex", f"{MAX_NESTING} levels"),
        ({"grammar": "a" * (MAX_GRAMMAR_BYTES + 1)}, "grammar", f"limit is {MAX_GRAMMAR_BYTES}"),
        ({"json_schema": {"const": "é" * 40_000}}, "json_schema", f"limit is {MAX_GRAMMAR_BYTES}"),
        ({"choice": []}, "choice", "at least one"),
        ({"choice": ["a", ""]}, "choice[1]", "at least one character"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, "choice", f"limit is {MAX_CHOICES}"),
        ({"regex": "a", "choice": ["a"]}, "choice", "at most 1"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "response_format"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_wrong(body: dict[str, object], field: str | None, said: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(**body)
    assert refusal.value.parameter == field
    assert said in refusal.value.message
    assert len(refusal.value.message) < 400


def test_the_most_of_everything_is_accepted() -> None:
    assert read(choice=["a"] * MAX_CHOICES) is not None
    assert read(regex="(" * MAX_NESTING + r"a\(\[" + ")" * MAX_NESTING + "a{10000}") is not None
    assert read(regex=r"\x{20000}\{20000}") is not None  # a character, and braces that are text
    assert read(grammar="a" * MAX_GRAMMAR_BYTES) is not None


def test_what_the_engine_refuses_is_answered_for_the_field_that_held_it() -> None:
    error = grammar_refused(validate(StructuredFields, {"guided_regex": "["}), "cannot be used: unclosed class")
    assert (error.parameter, error.message) == ("guided_regex", "guided_regex cannot be used: unclosed class.")


def test_a_field_that_asks_for_no_grammar_is_not_blamed_for_one() -> None:
    for other in ({"response_format": {"type": "text"}}, {"json_object": False}):
        error = grammar_refused(validate(StructuredFields, {**other, "regex": "("}), "cannot be used: unclosed group")
        assert (error.parameter, error.message) == ("regex", "regex cannot be used: unclosed group.")
