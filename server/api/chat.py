"""POST /v1/chat/completions."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.accepted import CHAT_UNSUPPORTED, keep_supported
from server.api.admission import prepare
from server.api.body import read_json_object
from server.api.conversation import tokenize_conversation
from server.api.logprobs import TokenNames
from server.api.openapi import json_body
from server.api.parameters import check_choices, num_logprobs
from server.api.prompts import TextLimit
from server.api.respond import Answering, check_stream_options, respond
from server.api.schemas_chat import ChatRequest
from server.api.service import Service
from server.api.shape_chat import ChatShape
from server.api.shapes import Extras
from server.api.validation import validate
from server.api.words import read_spellings

_FIELDS = frozenset(ChatRequest.model_fields)


def chat_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=json_body(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        body = await read_json_object(request, service.settings.max_body_bytes)
        asked = validate(ChatRequest, keep_supported(body, _FIELDS, CHAT_UNSUPPORTED))
        model = service.find_model(asked.model)
        check_stream_options(asked)
        # As for completions: nothing is rendered or tokenized for a request that would be refused after it.
        service.engine.check_admission(model.name, check_choices(asked, 1, service.settings))
        limit = TextLimit.of_context(model, service.engine_info(model))
        prompt = await tokenize_conversation(service, model, asked, limit)
        spellings = await read_spellings(model, [asked])
        prepared = prepare(service, model, asked, [prompt], getattr(request.state, "tenant", ""), spellings)
        names = TokenNames(model.tokenizer, bool(asked.return_tokens_as_token_ids))
        shape = ChatShape(Extras.of(asked, prepared.admitted, names), num_logprobs(asked))
        return await respond(request, Answering(service, model, asked, prepared, shape))

    return router
