"""What a client may send to /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from server.api.accepted import MESSAGE_UNSUPPORTED, keep_supported
from server.api.json_guard import shown
from server.api.schemas import GenerationRequest, Logprobs
from server.api.settings import MAX_CONTENT_PARTS, MAX_MESSAGES
from server.api.validation import StrictModel, validate
from server.errors import BadRequest

Role = Literal["system", "developer", "user", "assistant"]


class Message(StrictModel):
    """One turn. `content` may arrive as an array of text parts; it is kept as their texts joined by newlines."""

    role: Role
    content: str
    name: str | None = None


_MESSAGE_FIELDS = frozenset(Message.model_fields)


def read_messages(value: object) -> tuple[Message, ...]:
    """Raises BadRequest naming the message, e.g. messages[2].content[0].type."""
    if not isinstance(value, list) or not value:
        raise _invalid("messages", value, "an array of at least one message")
    if len(value) > MAX_MESSAGES:
        raise BadRequest(
            f"messages has {len(value)} entries; the limit is {MAX_MESSAGES}.", "messages", "invalid_value"
        )
    return tuple(_read_message(f"messages[{index}]", item) for index, item in enumerate(value))


Messages = Annotated[tuple[Message, ...], BeforeValidator(read_messages, json_schema_input_type=list[Message])]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[str, object], Field(max_length=64)] | None = None


def _read_message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise _invalid(where, value, "an object with role and content")
    fields = keep_supported(value, _MESSAGE_FIELDS, MESSAGE_UNSUPPORTED, where + ".")
    if isinstance(fields.get("content"), list):
        fields["content"] = _join_parts(f"{where}.content", fields["content"])
    return validate(Message, fields, where + ".")


def _join_parts(where: str, parts: object) -> str:
    assert isinstance(parts, list)
    if len(parts) > MAX_CONTENT_PARTS:
        raise BadRequest(f"{where} has {len(parts)} parts; the limit is {MAX_CONTENT_PARTS}.", where, "invalid_value")
    return "\n".join(_read_part(f"{where}[{index}]", part) for index, part in enumerate(parts))


def _read_part(where: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise _invalid(where, part, "a content part of type text")
    if part.get("type") != "text":
        kind = shown(part.get("type"))
        raise BadRequest(
            f'{where}.type is {kind}; only parts of type "text" are supported.', f"{where}.type", "unsupported_value"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise _invalid(f"{where}.text", text, "a string")
    keep_supported(part, frozenset({"type", "text"}), {}, where + ".")
    return text


def _invalid(parameter: str, value: object, expected: str) -> BadRequest:
    return BadRequest(f"{parameter} is {shown(value)}; it must be {expected}.", parameter, "invalid_value")
