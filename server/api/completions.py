"""POST /v1/completions."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.accepted import COMPLETION_UNSUPPORTED, keep_supported
from server.api.admission import Prepared, prepare
from server.api.body import read_json_object
from server.api.fork import check_one_source, prepare_fork
from server.api.logprobs import TokenNames
from server.api.openapi import json_body
from server.api.parameters import check_choices, num_logprobs
from server.api.prompts import tokenize_prompts
from server.api.respond import Answering, check_stream_options, respond
from server.api.run import Admitted
from server.api.schemas import CompletionRequest
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.shape_completion import CompletionShape, make_echo
from server.api.shapes import Extras
from server.api.validation import validate
from server.api.words import read_spellings
from server.errors import BadRequest

_FIELDS = frozenset(CompletionRequest.model_fields)


def completions_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", openapi_extra=json_body(CompletionRequest))
    async def create_completion(request: Request) -> Response:
        """Continue one or more prompts."""
        body = await read_json_object(request, service.settings.max_body_bytes)
        asked = validate(CompletionRequest, keep_supported(body, _FIELDS, COMPLETION_UNSUPPORTED))
        model = service.find_model(asked.model)
        prepared = await _prepare(service, model, asked, getattr(request.state, "tenant", ""))
        shape = _make_shape(asked, model, prepared.admitted)
        return await respond(request, Answering(service, model, asked, prepared, shape))

    return router


async def _prepare(service: Service, model: ServedModel, asked: CompletionRequest, tenant: str) -> Prepared:
    settings = service.settings
    check_stream_options(asked)
    check_one_source(asked)
    if asked.fork is not None:
        return await prepare_fork(service, model, asked, tenant)
    if len(asked.prompt) > settings.max_prompts:
        raise BadRequest(
            f"prompt has {len(asked.prompt)} prompts; the limit is {settings.max_prompts}.", "prompt", "invalid_value"
        )
    num_sequences = len(asked.prompt) * check_choices(asked, len(asked.prompt), settings)
    # Tokenizing is the work of this side: for a request that would be refused after it, it is not begun.
    service.engine.check_admission(model.name, num_sequences)
    info = service.engine_info(model)
    prompts = await tokenize_prompts(asked.prompt, model, info, asked.add_special_tokens is not False)
    return prepare(service, model, asked, prompts, tenant, await read_spellings(model, [asked]))


def _make_shape(asked: CompletionRequest, model: ServedModel, admitted: Admitted) -> CompletionShape:
    names = TokenNames(model.tokenizer, bool(asked.return_tokens_as_token_ids))
    echoes = tuple(make_echo(prompt, model.tokenizer) for prompt in admitted.prompts) if asked.echo else ()
    return CompletionShape(Extras.of(asked, admitted, names), echoes, num_logprobs(asked))
