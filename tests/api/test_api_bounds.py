"""What is refused before work is done for it: long texts, refused requests, and too many or too slow bodies."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import httpx
import pytest
from api_apps import MODEL, client_of, make_app
from api_requests import Json, ask, complete, error_of, refused
from fake_engine import ByteTokenizer, FakeEngine, info
from live_server import serving
from starlette.types import Receive, Scope, Send

from server.api import app as app_module
from server.api import tokenization
from server.api.body_bounds import BodyBounds
from server.api.settings import LONG_TEXT
from server.errors import Draining, EngineUnavailable, QueueFull, ServerError

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class SpyingTokenizer(ByteTokenizer):
    """Remembers how much it was made to encode, and which threads it worked in."""

    def __init__(self, max_token_bytes: int | None = 1) -> None:
        self.max_token_bytes = max_token_bytes  # type: ignore[assignment]
        self.num_encoded = 0
        self.threads: set[int] = set()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.num_encoded += len(text)
        return super().encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        self.threads.add(threading.get_ident())
        return super().decode(ids)

    def token_bytes(self, id: int) -> bytes:
        self.threads.add(threading.get_ident())
        return super().token_bytes(id)


def spied(tokenizer: SpyingTokenizer, engine: FakeEngine | None = None) -> httpx.AsyncClient:
    return client_of(make_app(engine or FakeEngine(), replace(MODEL, tokenizer=tokenizer)))


LONG = "é" * 257  # 514 bytes where 512 fit
TOO_LONG: list[tuple[str, Json, str]] = [
    (COMPLETIONS, {"prompt": LONG}, "prompt"),
    (COMPLETIONS, {"prompt": ["fits", LONG]}, "prompt[1]"),
    (CHAT, {"messages": [{"role": "user", "content": "é" * 250}]}, "messages"),  # too long with what is put around it
]


@pytest.mark.parametrize(("path", "body", "parameter"), TOO_LONG)
async def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(path: str, body: Json, parameter: str) -> None:
    tokenizer = SpyingTokenizer()
    async with spied(tokenizer) as client:
        error = await refused(client, path, {"model": "tiny", **body})
    assert (error["code"], error["param"]) == ("context_length_exceeded", parameter)
    assert f"{parameter} has 51" in error["message"]
    assert "the limit is 512:" in error["message"]
    assert "context length is 512 tokens" in error["message"]
    assert tokenizer.num_encoded == 0


async def test_text_of_exactly_the_longest_tokens_is_tokenized() -> None:
    tokenizer = SpyingTokenizer(max_token_bytes=3)
    async with spied(tokenizer) as client:
        for length, is_encoded in ((3 * 512, True), (3 * 512 + 1, False)):
            tokenizer.num_encoded = 0
            # More than the context either way: only whether it was tracked down by tokenizing differs.
            error = await refused(client, COMPLETIONS, {"model": "tiny", "prompt": "x" * length})
            assert error["code"] == "context_length_exceeded"
            assert (tokenizer.num_encoded > 0) == is_encoded


async def test_where_one_token_may_be_any_text_only_tokens_count() -> None:
    tokenizer = SpyingTokenizer(max_token_bytes=None)
    tokenizer.encode = lambda text, add_special_tokens=True: [1]  # type: ignore[method-assign]
    async with spied(tokenizer) as client:
        assert (await complete(client, prompt=" " * 1_000_000))["usage"]["prompt_tokens"] == 1


async def test_tokenize_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "MAX_TOKENIZE_BYTES", 2000)
    tokenizer = SpyingTokenizer()
    engine = FakeEngine()
    async with spied(tokenizer, engine) as client:
        assert (await ask(client, "/tokenize", {"prompt": "x" * 2000}))["count"] == 2000
        tokenizer.num_encoded = 0
        bodies: list[Json] = [{"prompt": "x" * 2001}, {"messages": [{"role": "user", "content": "x" * 2000}]}]
        for body in bodies:
            error = await refused(client, "/tokenize", body)
            assert (error["code"], error["param"]) == ("context_length_exceeded", next(iter(body)))
            assert "the limit is 2000" in error["message"]
        assert tokenizer.num_encoded == 0
        engine.known["tiny"] = info(context_length=3000)  # what can be completed can be tokenized
        assert (await ask(client, "/tokenize", {"prompt": "x" * 3000}))["count"] == 3000


@pytest.mark.parametrize("refusal", [QueueFull(3), Draining(), EngineUnavailable()])
@pytest.mark.parametrize(("path", "fields"), [(COMPLETIONS, {"prompt": ["a", "b"]}), (CHAT, {"messages": []})])
async def test_the_engine_is_asked_before_anything_is_tokenized(path: str, fields: Json, refusal: ServerError) -> None:
    tokenizer, engine = SpyingTokenizer(), FakeEngine(refusal=refusal)
    if path == CHAT:
        fields = {"messages": [{"role": "user", "content": "hi"}]}
    async with spied(tokenizer, engine) as client:
        await refused(client, path, {"model": "tiny", "n": 3, **fields}, 503)
    assert engine.checked == [("tiny", 6 if path == COMPLETIONS else 3)]
    assert tokenizer.num_encoded == 0


@pytest.mark.parametrize("num_tokens", [5, LONG_TEXT + 1])
async def test_long_lists_of_tokens_are_told_apart_off_the_event_loop(num_tokens: int) -> None:
    is_long = num_tokens > LONG_TEXT
    tokenizer = SpyingTokenizer()
    async with spied(tokenizer) as client:
        answer = await ask(client, "/tokenize", {"prompt": "x" * num_tokens, "return_token_strs": True})
        assert answer["token_strs"] == ["x"] * num_tokens
        assert (threading.get_ident() in tokenizer.threads) != is_long
        tokenizer.threads.clear()
        assert await ask(client, "/detokenize", {"tokens": answer["tokens"]}) == {"prompt": "x" * num_tokens}
        assert (threading.get_ident() in tokenizer.threads) != is_long


class Listing(ByteTokenizer):
    """Remembers each text it was made to encode, and in which thread."""

    def __init__(self) -> None:
        self.encoded: list[tuple[str, int]] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.encoded.append((text, threading.get_ident()))
        return super().encode(text, add_special_tokens)


@pytest.mark.parametrize("num_words", [3, 300])
async def test_words_are_tokenized_once_for_all_strategies_and_many_off_the_event_loop(num_words: int) -> None:
    is_long = num_words == 300
    words = [f"{index:030}" for index in range(num_words)]
    strategies = [{"seed": seed, "dry_multiplier": 1.0} for seed in range(16)]
    bodies: list[tuple[str, Json]] = [
        (COMPLETIONS, {"prompt": [1]}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/compare", {"prompt": [1], "max_tokens": 1, "strategies": strategies}),
    ]
    for path, body in bodies:
        tokenizer = Listing()
        async with client_of(make_app(FakeEngine(), replace(MODEL, tokenizer=tokenizer))) as client:
            await ask(client, path, {"model": "tiny", **body, "bad_words": words})
        threads = dict(tokenizer.encoded)
        assert [text for text, _ in tokenizer.encoded if text.strip().isdecimal()] == [
            text for word in words for text in (word, " " + word)
        ]
        assert (threads[words[0]] != threading.get_ident()) == is_long


async def never_ending(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    await asyncio.Event().wait()


async def test_a_body_that_takes_too_long_is_a_408_that_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "READ_BODY_SECONDS", 0.01)
    async with client_of(make_app(FakeEngine())) as client:
        answer = await client.post(COMPLETIONS, content=never_ending(b'{"model": ', b'"tiny"'))
        error = error_of(answer, 408)
    assert error["code"] == "request_timeout"
    assert "0.01 seconds" in error["message"]
    assert answer.headers["connection"] == "close"


async def test_an_answer_may_take_longer_than_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "READ_BODY_SECONDS", 0.01)
    engine = FakeEngine(holds_after=1)
    async with client_of(make_app(engine)) as client:
        asyncio.get_running_loop().call_later(0.05, engine.released.set)
        assert (await complete(client))["choices"][0]["text"] == "Hello, world"


async def test_bodies_being_read_are_bounded_together_and_give_their_room_back() -> None:
    body = json.dumps({"model": "tiny", "prompt": "x" * 60}).encode()
    app = BodyBounds(make_app(FakeEngine()), max_bytes=len(body) + 10, read_seconds=10)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(num_first: int) -> AsyncIterator[bytes]:
        yield body[:num_first]
        begun.set()
        await go_on.wait()
        yield body[num_first:]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
        first = asyncio.create_task(client.post(COMPLETIONS, content=slow(11)))
        await begun.wait()
        for _ in range(3):  # nor does a refused body keep what it held
            answer = await client.post(COMPLETIONS, content=body)
            assert error_of(answer, 503)["code"] == "queue_full"
            assert answer.headers["retry-after"] == "1"
        small = await client.post("/detokenize", content=b'{"tokens": []}')
        assert small.status_code == 200
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post(COMPLETIONS, content=body)).status_code == 200


async def test_room_is_given_back_when_the_body_is_whole_not_when_it_is_answered() -> None:
    body = json.dumps({"model": "tiny", "prompt": "hi"}).encode()
    engine = FakeEngine(holds_after=0)
    app = BodyBounds(make_app(engine), max_bytes=len(body), read_seconds=10)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
        first = asyncio.create_task(client.post(COMPLETIONS, content=body))
        while not engine.opened:
            await asyncio.sleep(0)
        engine.released.set()
        answers = [await client.post(COMPLETIONS, content=body), await first]
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_the_application_bounds_the_bodies_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_BYTES_BEING_READ", 20)
    async with client_of(make_app(FakeEngine())) as client:
        error_of(await client.post(COMPLETIONS, content=b" " * 21), 503)


async def test_what_is_no_request_passes_the_bounds() -> None:
    seen = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["type"], await receive()))

    async def receive() -> Json:
        return {"type": "lifespan.startup"}

    await BodyBounds(inner, 1, 1.0)({"type": "lifespan"}, receive, receive)  # type: ignore[arg-type]
    assert seen == [("lifespan", {"type": "lifespan.startup"})]


async def test_a_fault_of_the_server_is_a_500_with_a_request_id() -> None:
    class Broken(FakeEngine):
        def check_admission(self, model: str, num_sequences: int) -> None:
            raise RuntimeError("secret")

    transport = httpx.ASGITransport(make_app(Broken()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        answer = await client.post(
            COMPLETIONS, json={"model": "tiny", "prompt": "hi"}, headers={"x-request-id": "mine"}
        )
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/a%20b", "/a%20b"),
        (b"/%ff%00%0a%5b", "/%ff%00%0a%5b"),
        (b"/a%3Fb%23c", "/a%3Fb%23c"),
        (b"//[x", "//%5Bx"),
        (b"/" + b"x" * 300, "/" + "x" * 199),
    ],
)
def test_an_unknown_path_is_shown_as_it_was_sent(target: bytes, shown: str) -> None:
    with serving(make_app(FakeEngine())) as server:
        answer = raw_get(server.url, target)
        assert error_of(answer, 404)["message"] == f"GET {shown}: no such endpoint."


def raw_get(url: str, target: bytes) -> httpx.Response:
    """A request for exactly these bytes, which client libraries would rewrite."""
    request = httpx.Request("GET", url, headers={"Connection": "close"}, extensions={"target": target})
    with httpx.Client() as client:
        return client.send(request)
