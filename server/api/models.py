"""GET /v1/models and /v1/models/{id}."""

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from server.api.served_model import ServedModel
from server.api.service import Service


class ModelCard(Struct):
    """OpenAI's model object; what is known only once the engine has loaded the model is left out before."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "minigpt"
    max_model_len: int | UnsetType = UNSET
    vocab_size: int | UnsetType = UNSET
    num_parameters: int | UnsetType = UNSET
    dtype: str | UnsetType = UNSET
    quantize: str | UnsetType = UNSET
    kv_cache: str | UnsetType = UNSET
    default_parameters: dict[str, float] | UnsetType = UNSET


def models_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        """Every model served."""
        cards = [_card(service, model) for model in service.models.values()]
        return _json({"object": "list", "data": cards})

    @router.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Response:
        """One model; names may contain slashes."""
        return _json(_card(service, service.find_model(model_id)))

    return router


def _card(service: Service, model: ServedModel) -> ModelCard:
    card = ModelCard(id=model.name, created=model.created, default_parameters=model.defaults.given())
    info = service.engine.models().get(model.name)
    if info is not None:
        card.max_model_len = info.context_length
        card.vocab_size = info.vocab_size
        card.num_parameters = info.num_parameters
        card.dtype = info.dtype
        card.quantize = info.quantize
        card.kv_cache = info.kv_cache
    return card


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
