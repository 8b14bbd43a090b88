"""The one way a bad setting is refused: the field, the value and the limit, on one line."""

from typing import NoReturn


class ConfigError(Exception):
    """A setting outside its limits. Not a ValueError, so that the command-line parser lets it through unwrapped."""


def refuse(field: str, value: object, limit: str) -> NoReturn:
    """Raise ConfigError for the setting `field` (its name in the configuration, with underscores)."""
    raise ConfigError(f"--{field.replace('_', '-')} {value}: {limit}")


def require(holds: bool, field: str, value: object, limit: str) -> None:
    """Refuse unless `holds`. Write `holds` so that NaN makes it false: `0 < x <= 5`, not `not x > 5`."""
    if not holds:
        refuse(field, value, limit)
