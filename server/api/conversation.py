"""Messages to token ids through the model's chat template. It knows no sampling parameter and no response shape."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from anyio.to_thread import run_sync

from server.api.prompts import TextLimit, TokenizedPrompt, tokenize
from server.api.schemas_chat import Message
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.settings import LONG_TEXT
from server.errors import BadRequest


class Conversation(Protocol):
    """The fields of a request that make its prompt."""

    @property
    def messages(self) -> Sequence[Message] | None: ...

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def add_special_tokens(self) -> bool | None: ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, object] | None: ...


async def tokenize_conversation(
    service: Service, model: ServedModel, asked: Conversation, limit: TextLimit
) -> TokenizedPrompt:
    """Raises BadRequest when the template refuses the messages, or makes nothing or more than `limit` of them.

    Templates write the beginning-of-text token themselves, so it is added only when asked for.
    """
    messages = [message.model_dump(exclude_none=True) for message in asked.messages or ()]
    template = service.templates[model.name]
    add_generation_prompt = asked.add_generation_prompt is not False
    # A template may repeat what it is given, but a prompt of several times the largest body is no conversation.
    max_length = 4 * service.settings.max_body_bytes

    def render() -> str:
        return template.render(messages, add_generation_prompt, asked.chat_template_kwargs or {}, max_length)

    is_long = sum(len(message["content"]) for message in messages) > LONG_TEXT
    text = await run_sync(render) if is_long else render()
    limit.check("messages", text)
    (tokens,) = await tokenize([text], model, asked.add_special_tokens is True)
    if not tokens:
        raise BadRequest("messages make an empty prompt; it must have at least one token.", "messages", "invalid_value")
    return TokenizedPrompt(tokens, text, "messages")
