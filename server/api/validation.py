"""Request bodies to pydantic models, and pydantic's complaints to errors that name parameter, value and limit."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from server.api.json_guard import shown
from server.errors import BadRequest


class StrictModel(BaseModel):
    """No coercion (1.0 is no integer, true is no 1, "1" is no number) and no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


M = TypeVar("M", bound=StrictModel)

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "string_type": "a string",
    "dict_type": "an object",
    "list_type": "an array",
    "model_type": "an object",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "string_too_long": "characters",
    "too_long": "entries",
}


def validate(model: type[M], body: Mapping[str, object], where: str = "") -> M:
    """Raises BadRequest for the first thing wrong; those our own validators raise pass through as they are.

    `where` prefixes parameter names, as "messages[0]." does.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    parameter = where + _path(first["loc"])
    if kind == "missing":
        raise BadRequest(f"{parameter} is required.", parameter, "missing_required_parameter")
    if kind == "extra_forbidden":
        raise BadRequest(f"Unknown parameter: {shown(parameter)}.", parameter, "unknown_parameter")
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
    elif kind in _LIMITS:
        words, key = _LIMITS[kind]
        expected = f"{words} {context[key]}"
    elif kind in _LENGTHS:
        expected = f"at most {context['max_length']} {_LENGTHS[kind]} long"
    elif kind == "literal_error":
        expected = str(context["expected"])
    else:
        expected = f"otherwise ({first['msg']})"
    raise BadRequest(f"{parameter} is {shown(first['input'])}; it must be {expected}.", parameter, "invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "role") as "messages[0].role", bounded like everything that is sent back."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:80]}"
    return path.removeprefix(".")
