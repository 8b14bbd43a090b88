"""POST /tokenize and /detokenize: the tokenizer by itself, without the engine's queue."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter
from msgspec import UNSET, Struct, UnsetType
from pydantic import Field, PlainValidator
from starlette.requests import Request
from starlette.responses import Response

from server.api.accepted import keep_supported
from server.api.body import read_json_object
from server.api.conversation import tokenize_conversation
from server.api.fields import read_token_ids
from server.api.logprobs import TokenNames
from server.api.openapi import json_body
from server.api.prompts import TextLimit, check_token_ids, tokenize
from server.api.schemas_chat import Messages
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.settings import LONG_TEXT, MAX_TOKENIZE_BYTES
from server.api.validation import StrictModel, validate
from server.engine.types import EngineInfo
from server.errors import BadRequest

M = TypeVar("M", bound=StrictModel)
T = TypeVar("T")


class TokenizeRequest(StrictModel):
    """POST /tokenize: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[str, object], Field(max_length=64)] | None = None
    return_token_strs: bool | None = None


_TOKENS = PlainValidator(lambda value: read_token_ids("tokens", value), json_schema_input_type=list[int])


class DetokenizeRequest(StrictModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[tuple[int, ...], _TOKENS]


class Tokenized(Struct):
    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | UnsetType = UNSET


def tokenization_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize", openapi_extra=json_body(TokenizeRequest))
    async def create_tokens(request: Request) -> Response:
        """A text or a conversation as the model reads it."""
        asked = await _read(request, service, TokenizeRequest)
        return _json(await _tokenize(service, asked))

    @router.post("/detokenize", openapi_extra=json_body(DetokenizeRequest))
    async def create_text(request: Request) -> Response:
        """Token ids as text."""
        asked = await _read(request, service, DetokenizeRequest)
        model = service.find_model(asked.model)

        def decode() -> str:
            check_token_ids(asked.tokens, model.tokenizer.vocab_size, "tokens")
            return model.tokenizer.decode(asked.tokens)

        return _json({"prompt": await _aside(decode, len(asked.tokens))})

    return router


async def _tokenize(service: Service, asked: TokenizeRequest) -> Tokenized:
    if (asked.prompt is None) == (asked.messages is None):
        raise BadRequest("Exactly one of prompt and messages is required.", "prompt", "missing_required_parameter")
    model = service.find_model(asked.model)
    info = service.engine_info(model)
    limit = _limit(model, info)
    if asked.prompt is not None:
        limit.check("prompt", asked.prompt)
        (tokens,) = await tokenize([asked.prompt], model, asked.add_special_tokens is not False)
    else:
        tokens = (await tokenize_conversation(service, model, asked, limit)).tokens
    answer = Tokenized(len(tokens), info.context_length, tokens)
    if asked.return_token_strs:
        names = TokenNames(model.tokenizer, as_ids=False)
        answer.token_strs = await _aside(lambda: [names.name(token) for token in tokens], len(tokens))
    return answer


def _limit(model: ServedModel, info: EngineInfo) -> TextLimit:
    """More than the context holds, so that clients can see by how much a text is too long, but not without end."""
    max_bytes = max(MAX_TOKENIZE_BYTES, TextLimit.of_context(model, info).max_bytes or 0)
    return TextLimit(max_bytes, "that is the most that is tokenized at once")


async def _aside(work: Callable[[], T], num_tokens: int) -> T:
    """The result of `work`, done in a worker thread if there is much of it."""
    return await run_sync(work) if num_tokens > LONG_TEXT else work()


async def _read(request: Request, service: Service, model: type[M]) -> M:
    body = await read_json_object(request, service.settings.max_body_bytes)
    return validate(model, keep_supported(body, frozenset(model.model_fields), {}))


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
