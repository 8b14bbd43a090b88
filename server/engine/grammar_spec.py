"""What a sequence's text must look like, as plain data. Knows no library that could enforce it."""

from dataclasses import dataclass
from typing import Literal


class GrammarError(ValueError):
    """A grammar that cannot be served, or whose matching outgrew its limits."""


@dataclass(frozen=True)
class Grammar:
    """A grammar by its source text."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
