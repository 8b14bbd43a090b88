"""Keys: what is behind them, and what a wrong one is told."""

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import error_of
from fake_engine import FakeEngine

from server.api.settings import ApiSettings

pytestmark = pytest.mark.anyio

KEY = "sk-tiny"
CLOSED = ["/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/nothing", "/health/", "/v1/completions"]
OPEN = ["/health", "/health/live", "/health/ready", "/version"]


def keyed_client(**headers: str) -> httpx.AsyncClient:
    return client_of(make_app(FakeEngine(), settings=ApiSettings(api_keys=("other", KEY))), **headers)


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "header", [None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer ", "Bearer sk-tin", f"Bearer {KEY}x", f"Bearer {KEY} x"]
)
async def test_without_the_key_everything_else_is_a_401_in_openais_shape(path: str, header: str | None) -> None:
    async with keyed_client(**({} if header is None else {"authorization": header})) as client:
        answer = await client.get(path)
    error = error_of(answer, 401)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", "Bearer other"])
async def test_each_key_opens_everything(header: str) -> None:
    async with keyed_client(authorization=header) as client:
        for path in CLOSED[:4]:
            assert (await client.get(path)).status_code == 200
        error_of(await client.get("/nothing"), 404)


@pytest.mark.parametrize("path", OPEN)
async def test_health_and_version_are_open(path: str) -> None:
    async with keyed_client() as client:
        assert (await client.get(path)).status_code == 200


async def test_a_body_is_not_read_before_the_key_is_checked() -> None:
    async with keyed_client() as client:
        error_of(await client.post("/v1/completions", content=b"not json"), 401)


async def test_a_key_that_is_not_ascii_is_only_wrong() -> None:
    async with keyed_client() as client:
        answer = await client.get("/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe")])
    error_of(answer, 401)


async def test_without_keys_everybody_may_ask(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("key", ["", " ", "a ", "é"])
def test_keys_that_no_header_can_carry_are_refused_at_start(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        ApiSettings(api_keys=(key,))
