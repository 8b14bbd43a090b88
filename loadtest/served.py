"""What a server tells of its models before the load begins: their names, and how many tokens each holds."""

import aiohttp
import msgspec

from loadtest.payload import endpoint_url
from loadtest.record import RequestError, reason


class ServedModel(msgspec.Struct):
    """An entry of /v1/models. Not every server tells `max_model_len`: the tokens of prompt and answer together."""

    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[ServedModel]


async def list_models(session: aiohttp.ClientSession, base: str) -> list[ServedModel]:
    """All that /v1/models lists. Raises RequestError, also when it lists none."""
    try:
        async with session.get(endpoint_url(base, "/v1/models")) as response:
            if response.status != 200:
                raise RequestError(f"http_{response.status}", "GET /v1/models; give --model")
            models = msgspec.json.decode(await response.read(), type=_ModelList).data
    except (TimeoutError, aiohttp.ClientError, OSError) as problem:
        raise RequestError("connect", reason(problem)) from problem
    except msgspec.DecodeError as problem:
        raise RequestError("malformed", f"GET /v1/models: {problem}; give --model") from problem
    if not models:
        raise RequestError("malformed", "GET /v1/models: lists no model; give --model")
    return models
