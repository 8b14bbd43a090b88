"""Typed access to the fields of a config.json: a wrong type is an error that names the field. Converts nothing."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from model.files import CheckpointError

Choice = TypeVar("Choice", bound=str)


class Fields:
    """The raw fields of one JSON object. A field that is absent or null takes the default, if there is one."""

    def __init__(self, raw: Mapping[str, object], prefix: str = "") -> None:
        self._raw = raw
        self._prefix = prefix

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        return value

    def whole_or_none(self, name: str) -> int | None:
        """A whole number, or None where the field is absent or null."""
        return None if self._raw.get(name) is None else self.whole(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A whole or fractional number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        try:
            return float(value)
        except OverflowError as error:
            raise self.wrong(name, "a number of ordinary size") from error

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[Choice], default: str | None = None) -> Choice:
        """One of `choices`."""
        value = self._value(name, default)
        for choice in choices:
            if value == choice:
                return choice
        raise self.wrong(name, "one of " + ", ".join(choices))

    def section(self, name: str) -> "Fields":
        """The object in field `name`; an empty one where the field is absent or null."""
        value = self._raw.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self._prefix}{name}.")

    def texts(self, name: str) -> list[str]:
        """A list of texts; an empty one where the field is absent or null."""
        value = self._raw.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts")
        return value

    def __contains__(self, name: str) -> bool:
        """Whether the field is present, null or not."""
        return name in self._raw

    def names(self) -> list[str]:
        """The fields present and not null."""
        return [name for name, value in self._raw.items() if value is not None]

    def refuse_unless(self, name: str, *supported: object) -> None:
        """A field that would change the result: raises unless it is absent, null or one of `supported`."""
        value = self._raw.get(name)
        # Types are compared too: in Python True == 1.
        if value is not None and not any(value == other and type(value) is type(other) for other in supported):
            wanted = " or ".join(repr(other) for other in supported) or "absent"
            raise CheckpointError(
                f"{self._prefix}{name} is {_shown(value)}, which is not supported; it must be {wanted}"
            )

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """The error for a field that is not `wanted`."""
        if self._raw.get(name) is None:
            return CheckpointError(f"{self._prefix}{name} is missing; it must be {wanted}")
        return CheckpointError(f"{self._prefix}{name} is {_shown(self._raw[name])}; it must be {wanted}")

    def _value(self, name: str, default: object) -> object:
        value = self._raw.get(name)
        return default if value is None else value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer too long for Python to print
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
