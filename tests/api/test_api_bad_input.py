"""A client's mistakes: each a 4xx naming parameter, value and limit, found before the engine is asked."""

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import Json, error_of, refused
from fake_engine import FakeEngine

from server.api.settings import ApiSettings

pytestmark = pytest.mark.anyio

BIG = 10**400

# field, value, parameter named, words of the message
WRONG_ANYWHERE: list[tuple[str, object, str, list[str]]] = [
    ("model", None, "model", ["null", "a string"]),
    ("model", 5, "model", ["5", "a string"]),
    ("n", 0, "n", ["0", "between 1 and 16"]),
    ("n", -1, "n", ["-1"]),
    ("n", 17, "n", ["17", "16"]),
    ("n", BIG, "n", ["between 1 and 16"]),
    ("n", 1.0, "n", ["1.0", "an integer"]),
    ("n", True, "n", ["true", "an integer"]),
    ("n", "2", "n", ['"2"', "an integer"]),
    ("max_tokens", -1, "max_tokens", ["-1", "at least 0"]),
    ("max_tokens", 2**31, "max_tokens", [str(2**31), str(2**31 - 1)]),
    ("max_tokens", BIG, "max_tokens", ["an integer of 1329 bits", str(2**31 - 1)]),
    ("max_tokens", 16.0, "max_tokens", ["16.0", "an integer"]),
    ("max_completion_tokens", -1, "max_completion_tokens", ["at least 0"]),
    ("min_tokens", 17, "min_tokens", ["17", "16"]),
    ("temperature", -0.1, "temperature", ["-0.1", "between 0.0 and 10.0"]),
    ("temperature", 10.1, "temperature", ["10.1", "10.0"]),
    ("temperature", "1", "temperature", ['"1"', "a number"]),
    ("temperature", False, "temperature", ["false", "a number"]),
    ("temperature", BIG, "temperature", ["a number"]),
    ("top_p", 0, "top_p", ["above 0"]),
    ("top_p", 1.5, "top_p", ["1.5", "at most 1.0"]),
    ("top_k", -2, "top_k", ["-2", "at least -1"]),
    ("top_k", BIG, "top_k", ["at most"]),
    ("min_p", 1.1, "min_p", ["1.1", "1.0"]),
    ("presence_penalty", 2.1, "presence_penalty", ["2.1", "2.0"]),
    ("frequency_penalty", -2.1, "frequency_penalty", ["-2.1", "-2.0"]),
    ("repetition_penalty", 0, "repetition_penalty", ["0.01", "10.0"]),
    ("seed", -1, "seed", ["-1", "at least 0"]),
    ("seed", 2**64, "seed", [str(2**64), str(2**64 - 1)]),
    ("seed", 1.5, "seed", ["1.5", "an integer"]),
    ("logit_bias", [], "logit_bias", ["an array", "an object"]),
    ("logit_bias", {"-1": 1}, "logit_bias", ['"-1"', "a token id"]),
    ("logit_bias", {"01": 1}, "logit_bias", ['"01"']),
    ("logit_bias", {"²": 1}, "logit_bias", ["a token id"]),
    ("logit_bias", {"9" * 5000: 1}, "logit_bias", ["a token id"]),
    ("logit_bias", {"5": 101}, "logit_bias[5]", ["101", "-100.0 and 100.0"]),
    ("logit_bias", {"5": BIG}, "logit_bias[5]", ["-100 and 100"]),
    ("logit_bias", {"5": True}, "logit_bias[5]", ["true", "a number"]),
    ("logit_bias", {"258": 1}, "logit_bias", ["258", "257"]),
    ("logit_bias", {str(i): 0 for i in range(1025)}, "logit_bias", ["1025", "1024"]),
    ("allowed_token_ids", [], "allowed_token_ids", ["no token"]),
    ("allowed_token_ids", [1, BIG], "allowed_token_ids[1]", ["token id"]),
    ("allowed_token_ids", [258], "allowed_token_ids", ["258", "257"]),
    ("allowed_token_ids", [1.0], "allowed_token_ids[0]", ["1.0"]),
    ("banned_token_ids", [-1], "banned_token_ids[0]", ["-1"]),
    ("banned_token_ids", [BIG], "banned_token_ids[0]", ["token id"]),
    ("banned_token_ids", list(range(258)), "banned_token_ids", ["no token"]),
    ("banned_token_ids", 5, "banned_token_ids", ["an array"]),
    ("stop_token_ids", [0] * 1025, "stop_token_ids", ["1025", "1024"]),
    ("stop", [""], "stop[0]", ['""', "at least one character"]),
    ("stop", "", "stop", ["at least one character"]),
    ("stop", 5, "stop", ["5", "a string or an array"]),
    ("stop", ["a", None], "stop[1]", ["null"]),
    ("stop", ["a"] * 17, "stop", ["17", "16"]),
    ("stop", "x" * 257, "stop", ["257", "256"]),
    ("ignore_eos", 1, "ignore_eos", ["1", "a boolean"]),
    ("prompt_logprobs", 21, "prompt_logprobs", ["21", "20"]),
    ("stream", "true", "stream", ['"true"', "a boolean"]),
    ("stream_options", {}, "stream_options", ["stream is not true"]),
    ("cache_salt", "x" * 257, "cache_salt", ["256 characters"]),
    ("tempurature", 1, "tempurature", ["Unknown parameter"]),
    ("x" * 1000, 1, "x" * 80 + "...", ["Unknown parameter"]),
    ("skip_special_tokens", False, "skip_special_tokens", ["only true"]),
    ("response_format", {"type": "xml"}, "response_format.type", ['"xml"', '"text", "json_object" or "json_schema"']),
    ("response_format", "json_object", "response_format", ['"json_object"', "an object"]),
]

WRONG_COMPLETIONS: list[tuple[str, object, str, list[str]]] = [
    ("prompt", None, "prompt", ["prompt is required"]),
    ("prompt", [], "prompt", ["empty"]),
    ("prompt", [[]], "prompt", ["empty"]),
    ("prompt", [["a"]], "prompt[0][0]", ["a token id"]),
    ("prompt", [1, 2.0], "prompt[1]", ["2.0", "a token id"]),
    ("prompt", [1, True], "prompt[1]", ["true"]),
    ("prompt", [True], "prompt[0]", ["true"]),
    ("prompt", [1, "a"], "prompt[1]", ['"a"']),
    ("prompt", ["a", 1], "prompt[1]", ["1"]),
    ("prompt", [-1], "prompt[0]", ["-1"]),
    ("prompt", [1, 258], "prompt", ["prompt[1] is 258", "257"]),
    ("prompt", [BIG], "prompt[0]", ["token id"]),
    ("prompt", ["a"] * 65, "prompt", ["65", "64"]),
    ("prompt", "x" * 600, "prompt", ["600", "512"]),
    ("logprobs", 21, "logprobs", ["21", "20"]),
    ("logprobs", True, "logprobs", ["true", "an integer"]),
    ("best_of", 2, "best_of", ["2", "only 1"]),
    ("best_of", True, "best_of", ["true"]),
    ("best_of", 1.0, "best_of", ["1.0"]),
    ("suffix", "end", "suffix", ['"end"']),
    ("messages", [], "messages", ["Unknown parameter"]),
]

WRONG_CHAT: list[tuple[str, object, str, list[str]]] = [
    ("messages", None, "messages", ["null", "an array"]),
    ("messages", [], "messages", ["an array of at least one"]),
    ("messages", "hi", "messages", ["an array"]),
    ("messages", ["hi"], "messages[0]", ["an object"]),
    ("messages", [{"role": "user"}], "messages[0].content", ["required"]),
    ("messages", [{"content": "hi"}], "messages[0].role", ["required"]),
    ("messages", [{"role": "user", "content": None}], "messages[0].content", ["null", "a string"]),
    ("messages", [{"role": "tool", "content": "hi"}], "messages[0].role", ['"tool"', "'assistant'"]),
    ("messages", [{"role": "user", "content": "hi", "x": 1}], "messages[0].x", ["Unknown parameter"]),
    ("messages", [{"role": "user", "content": "hi", "user": 1}], "messages[0].user", ["Unknown parameter"]),
    ("messages", [{"role": "assistant", "content": "", "tool_calls": [{}]}], "messages[0].tool_calls", ["no tools"]),
    ("messages", [{"role": "user", "content": [{}]}], "messages[0].content[0].type", ["null", "text"]),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        "messages[0].content[0].type",
        ["image_url", '"text"'],
    ),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", ["null"]),
    ("messages", [{"role": "user", "content": ["hi"]}], "messages[0].content[0]", ["a content part"]),
    ("messages", [{"role": "user", "content": "hi"}] * 4097, "messages", ["4097", "4096"]),
    ("messages", [{"role": "user", "content": "x" * 600}], "messages", ["618", "512"]),
    ("logprobs", 5, "logprobs", ["5", "a boolean"]),
    ("top_logprobs", 5, "top_logprobs", ["5", "logprobs"]),
    ("echo", True, "echo", ["/v1/completions"]),
    ("tools", [{}], "tools", ["no tools"]),
    ("tool_choice", "auto", "tool_choice", ["auto", "none"]),
    ("functions", [{}], "functions", ["no functions"]),
    ("modalities", ["text", "audio"], "modalities", ["text"]),
    ("audio", {}, "audio", ["only text"]),
    ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages", ["cannot be set"]),
    ("prompt", "hi", "prompt", ["Unknown parameter"]),
]


async def check_refused(client: httpx.AsyncClient, path: str, body: Json, parameter: str, words: list[str]) -> None:
    error = await refused(client, path, body)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == parameter
    assert error["code"]
    for word in words:
        assert word in str(error["message"])
    assert len(str(error["message"])) < 1000


@pytest.mark.parametrize(("field", "value", "parameter", "words"), WRONG_ANYWHERE + WRONG_COMPLETIONS)
async def test_wrong_completion_fields_are_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: object, parameter: str, words: list[str]
) -> None:
    body = {"model": "tiny", "prompt": "hi", field: value}
    await check_refused(client, "/v1/completions", body, parameter, words)
    assert not engine.opened


@pytest.mark.parametrize(("field", "value", "parameter", "words"), WRONG_ANYWHERE + WRONG_CHAT)
async def test_wrong_chat_fields_are_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: object, parameter: str, words: list[str]
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16, field: value}
    await check_refused(client, "/v1/chat/completions", body, parameter, words)
    assert not engine.opened


@pytest.mark.parametrize("field", ["model", "prompt"])
async def test_required_fields_are_named(client: httpx.AsyncClient, field: str) -> None:
    body: Json = {"model": "tiny", "prompt": "hi"}
    del body[field]
    error = await refused(client, "/v1/completions", body)
    assert (error["param"], error["code"]) == (field, "missing_required_parameter")


async def test_a_model_that_is_not_served_is_a_404_that_lists_those_that_are(client: httpx.AsyncClient) -> None:
    error = await refused(client, "/v1/completions", {"model": "huge", "prompt": "hi"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert '"huge"' in str(error["message"])
    assert "tiny" in str(error["message"])


async def test_a_context_overflow_names_prompt_tokens_max_tokens_and_limit(client: httpx.AsyncClient) -> None:
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": "x" * 500, "max_tokens": 13})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    for number in ("500", "13", "513", "512"):
        assert number in str(error["message"])


async def test_the_culprit_among_several_prompts_is_named(client: httpx.AsyncClient) -> None:
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": ["x", "y" * 512]})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt[1]")


async def test_prompts_times_n_are_bounded(engine: FakeEngine) -> None:
    async with client_of(make_app(engine, settings=ApiSettings(max_sequences=6))) as client:
        body: Json = {"model": "tiny", "prompt": ["a", "b"], "n": 3}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        error = await refused(client, "/v1/completions", {**body, "n": 4})
    assert error["param"] == "n"
    assert "8 sequences; the limit is 6" in str(error["message"])


async def test_the_log_probabilities_of_one_answer_are_bounded(client: httpx.AsyncClient) -> None:
    wide: Json = {"model": "tiny", "prompt": [[1] * 200] * 32, "prompt_logprobs": 20, "max_tokens": 0}
    error = await refused(client, "/v1/completions", wide)
    assert error["param"] == "prompt_logprobs"
    assert "up to 134400 log-probabilities" in str(error["message"])
    assert "the limit is 131072" in str(error["message"])


async def test_old_and_new_names_of_max_tokens_must_agree(client: httpx.AsyncClient) -> None:
    body: Json = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
    assert (await client.post("/v1/completions", json={**body, "max_completion_tokens": 3})).status_code == 200
    error = await refused(client, "/v1/completions", {**body, "max_completion_tokens": 4})
    assert error["param"] == "max_completion_tokens"


async def test_unknown_paths_and_methods_are_errors_of_the_same_shape(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(await client.post("/v1/completions/", json={}), 404)["code"] == "not_found"
    answer = await client.get("/v1/completions")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
