"""What a server tells of its models before the load begins: their names, and how many tokens each holds."""

import msgspec

from loadtest.connection import Head, ProtocolError
from loadtest.payload import endpoint_url
from loadtest.record import RequestError, reason
from loadtest.session import Session, with_body


class ServedModel(msgspec.Struct):
    """An entry of /v1/models. Not every server tells `max_model_len`: the tokens of prompt and answer together."""

    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[ServedModel]


class _Whole:
    """An answer that is read to its end before it is looked at."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def begin(self, head: Head) -> bool:
        self.status = head.status
        return head.status == 200

    def take(self, data: bytes, now: float) -> bool:
        self.body += data
        return True


async def list_models(session: Session) -> list[ServedModel]:
    """All that /v1/models lists. Raises RequestError, also when it lists none."""
    answer = _Whole()
    try:
        head = session.head("GET", endpoint_url(session.server.url, "/v1/models"))
        await session.exchange(with_body(head), answer)
    except (OSError, ProtocolError) as problem:
        raise RequestError("connect", reason(problem)) from problem
    if answer.status != 200:
        raise RequestError(f"http_{answer.status}", "GET /v1/models; give --model")
    try:
        models = msgspec.json.decode(answer.body, type=_ModelList).data
    except msgspec.DecodeError as problem:
        raise RequestError("malformed", f"GET /v1/models: {problem}; give --model") from problem
    if not models:
        raise RequestError("malformed", "GET /v1/models: lists no model; give --model")
    return models
