"""Conversations to prompt text through a checkpoint's Jinja template. It knows no tokenizer and no HTTP.

The template comes with the checkpoint and the values from clients: both run in Jinja's immutable sandbox, and the
length of what they make is bounded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import BadRequest

DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

# What expressions of a template can raise on values a client chose.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled template. Raises ValueError when the source is not a template."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], clock: Callable[[], float]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.fromtimestamp(clock()).strftime(form)
        try:
            self._template = environment.from_string(DEFAULT_TEMPLATE if source is None else source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not valid in line {error.lineno}: {error.message}") from error
        self._values: dict[str, object] = {**special_tokens, "tools": None, "documents": None}

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        extra: Mapping[str, object],
        max_length: int,
    ) -> str:
        """The prompt. Raises BadRequest when the template refuses the messages or makes over `max_length` characters.

        `extra` are the client's own values (chat_template_kwargs); they cannot replace ours.
        """
        values = {**self._values, "messages": messages, "add_generation_prompt": add_generation_prompt}
        for name in extra:
            if name in values:
                parameter = f"chat_template_kwargs.{name}"
                raise BadRequest(f"{parameter} cannot be set; the server sets it.", parameter, "invalid_value")
        try:
            return self._join({**extra, **values}, max_length)
        except _TEMPLATE_FAULTS as error:
            message = f"The chat template cannot render these messages: {str(error)[:500]}"
            raise BadRequest(message, "messages", "chat_template_error") from None

    def _join(self, values: Mapping[str, object], max_length: int) -> str:
        pieces = []
        length = 0
        for piece in self._template.generate(values):
            length += len(piece)
            if length > max_length:
                message = f"The rendered conversation has more than {max_length} characters, the limit."
                raise BadRequest(message, "messages", "context_length_exceeded")
            pieces.append(piece)
        return "".join(pieces)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
