"""What an answer must look like, as plain data that crosses the process boundary. Knows no compiler and no tokens."""

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "regex", "choice", "grammar"]

# Long schemas of real applications are a tenth of this; compilers take time and memory in proportion.
MAX_GRAMMAR_BYTES = 65_536


class GrammarError(ValueError):
    """A grammar that cannot be used: malformed, impossible to satisfy, or beyond a limit. The client's mistake."""


class CompilerError(RuntimeError):
    """A grammar that was not compiled though nothing is known against it: the server's failure."""


@dataclass(frozen=True)
class Grammar:
    """A constraint on the whole answer.

    `text` is JSON for "json_schema" (the schema) and "choice" (an array of strings), a regular expression (Rust's
    syntax, matching the whole answer) for "regex", and for "grammar" a context-free grammar in Lark's notation, or in
    GBNF when it holds "::=". Any JSON object is the schema {"type": "object"}. Raises GrammarError when `text` is
    longer than MAX_GRAMMAR_BYTES of UTF-8.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        num_bytes = len(self.text.encode(errors="surrogatepass"))
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"has {num_bytes} bytes; the limit is {MAX_GRAMMAR_BYTES}")
