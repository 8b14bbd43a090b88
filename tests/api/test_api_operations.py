"""Models, tokenization, health, version, metrics and request ids."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from api_apps import MODEL, NOW, QUEUE, client_of, make_app
from api_requests import Json, ask, complete, error_of, refused
from fake_engine import ByteTokenizer, FakeEngine, info

from server.api.app import create_app
from server.api.instruments import Instruments
from server.api.served_model import GenerationDefaults, load_served_model
from server.api.settings import ApiSettings
from server.engine.config import EngineConfig
from server.engine.params import ParameterError
from server.timeline import Timeline

pytestmark = pytest.mark.anyio

CARD = {
    "id": "tiny",
    "created": NOW - 1000,
    "object": "model",
    "owned_by": "minigpt",
    "max_model_len": 512,
    "vocab_size": 258,
    "num_parameters": 1000,
    "dtype": "float32",
    "quantize": "none",
    "kv_cache": "",
    "default_parameters": {},
}


async def test_models_are_listed_and_found_by_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [CARD]}
    assert (await client.get("/v1/models/tiny")).json() == CARD
    assert error_of(await client.get("/v1/models/huge"), 404)["code"] == "model_not_found"


async def test_a_model_that_is_still_loading_is_listed_but_not_served() -> None:
    async with client_of(make_app(FakeEngine(known={}, ready=False))) as client:
        assert "max_model_len" not in (await client.get("/v1/models/tiny")).json()
        error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": "hi"}, 503)
        assert error["code"] == "engine_unavailable"
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json() == {"status": "not ready", "reasons": ["the model tiny is not loaded"]}


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
async def test_ready_says_whether_a_request_would_be_taken(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    assert (await client.get(path)).json() == {"status": "ready"}
    engine.ready = False
    answer = await client.get(path)
    assert answer.status_code == 503
    assert "restarting" in answer.json()["reasons"][0]
    assert (await client.head(path)).status_code == 503


async def test_live_is_200_whatever_the_engine_does(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready = False
    engine.known = {}
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.head("/health/live")).status_code == 200


async def test_version_and_metrics_are_told(client: httpx.AsyncClient) -> None:
    assert isinstance((await client.get("/version")).json()["version"], str)
    metrics = await client.get("/metrics")
    assert metrics.text == "# metrics\n"
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_texts_are_tokenized_and_come_back(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/tokenize", {"model": "tiny", "prompt": "hé", "return_token_strs": True})
    assert answer == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "bytes:\\xc3", "bytes:\\xa9"],
    }
    assert await ask(client, "/detokenize", {"tokens": answer["tokens"]}) == {"prompt": "hé"}
    assert await ask(client, "/detokenize", {"tokens": []}) == {"prompt": ""}
    assert "token_strs" not in await ask(client, "/tokenize", {"prompt": "hi", "add_special_tokens": False})


async def test_conversations_are_tokenized_as_chat_sees_them(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = await ask(client, "/tokenize", {"messages": messages})
    await ask(client, "/v1/chat/completions", {"model": "tiny", "messages": messages})
    assert tuple(answer["tokens"]) == engine.requests[0][0].prompt


async def test_long_texts_are_tokenized_whatever_the_context(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "/tokenize", {"prompt": "x" * 20_000}))["count"] == 20_000
    assert await ask(client, "/detokenize", {"tokens": [120] * 20_000}) == {"prompt": "x" * 20_000}


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": [{"role": "x", "content": "b"}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, 1.0]}, "tokens[1]"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
    ],
)
async def test_wrong_tokenization_requests_are_refused_by_name(
    client: httpx.AsyncClient, path: str, body: dict[str, object], parameter: str
) -> None:
    assert (await refused(client, path, body))["param"] == parameter


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_tokenization_of_a_model_that_is_not_served_is_a_404(client: httpx.AsyncClient, path: str) -> None:
    await refused(
        client, path, {"model": "huge", "prompt": "a"} if path == "/tokenize" else {"model": "x", "tokens": []}, 404
    )


async def test_a_sane_request_id_comes_back_and_others_are_replaced(client: httpx.AsyncClient) -> None:
    answer = await client.get("/version", headers={"x-request-id": "Abc-1.2_3"})
    assert answer.headers["x-request-id"] == "Abc-1.2_3"
    made = set()
    for given in (None, "", "a b", "x" * 129, "a;b"):
        answer = await client.get("/nothing", headers={} if given is None else {"x-request-id": given})
        made.add(answer.headers["x-request-id"])
    assert len(made) == 5
    assert all(made_id.startswith("req-") for made_id in made)


async def test_the_fingerprint_is_stable_and_tells_checkpoints_formats_devices_and_back_ends_apart(
    engine: FakeEngine,
) -> None:
    prints = []
    changes = (
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"fingerprint": "f00d"},
        {"quantize": "int8"},
        {"kv_cache": "int8"},
        {"backend": "native avx512"},
    )
    others = [replace(info(), **change) for change in changes]
    for known in (info(), info(), *others):
        engine.known = {"tiny": known}
        async with client_of(make_app(engine)) as client:
            prints.append((await complete(client))["system_fingerprint"])
    assert prints[0] == prints[1]
    assert len(set(prints)) == 1 + len(changes)


async def test_the_openapi_document_has_every_schema_it_points_to(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert references
    assert {reference.partition('"')[0] for reference in references} <= set(document["components"]["schemas"])


def test_the_server_refuses_to_be_built_without_models_or_with_two_of_one_name() -> None:
    instruments = Instruments(lambda: b"", Timeline([]), QUEUE, EngineConfig())
    for models in ([], [MODEL, MODEL]):
        with pytest.raises(ValueError, match="model"):
            create_app(FakeEngine(), models, ApiSettings(), instruments)


@pytest.mark.parametrize("name", ["max_body_bytes", "max_prompts", "max_choices", "max_sequences"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    fields: Json = {name: -1}
    with pytest.raises(ValueError, match=name):
        ApiSettings(**fields)


def test_a_checkpoints_recommendations_and_token_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    generation = {"temperature": 0.6, "top_k": 50, "top_p": 1, "do_sample": True, "bos_token_id": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "model_max_length": 5}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    model = load_served_model("tiny", tmp_path, ByteTokenizer())
    assert model.defaults == GenerationDefaults(temperature=0.6, top_k=50, top_p=1.0)
    assert model.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert model.created == int((tmp_path / "config.json").stat().st_mtime)


def test_a_checkpoint_without_recommendations_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_served_model("tiny", tmp_path, ByteTokenizer()).defaults == GenerationDefaults()


def test_a_checkpoint_that_recommends_the_impossible_is_refused() -> None:
    with pytest.raises(ParameterError, match="top_p"):
        GenerationDefaults(top_p=1.5)
