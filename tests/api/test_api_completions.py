"""POST /v1/completions, whole answers."""

from dataclasses import replace

import httpx
import pytest
from api_apps import MODEL, NOW, client_of, make_app
from api_requests import Json, choice_of, complete
from fake_engine import EOS, FakeEngine, Script, recite

from server.api.accepted import COMPLETION_UNSUPPORTED, HARMLESS
from server.api.schemas import CompletionRequest
from server.api.seeds import derive_seed
from server.api.served_model import GenerationDefaults
from server.api.settings import ApiSettings
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

pytestmark = pytest.mark.anyio


def asked(engine: FakeEngine, index: int = 0) -> SamplingParams:
    return engine.requests[-1][index].params


async def test_an_answer_has_openais_fields_and_says_the_seed(client: httpx.AsyncClient) -> None:
    answer = await complete(client, seed=7)
    fingerprint = answer.pop("system_fingerprint")
    assert isinstance(fingerprint, str)
    assert fingerprint.startswith("fp_")
    assert str(answer.pop("id")).startswith("cmpl-")
    assert answer == {
        "object": "text_completion",
        "created": NOW,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "text": "Hello, world",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": EOS,
                "seed": 7,
            }
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 13,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_what_is_left_out_is_the_default_and_null_is_left_out(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, seed=0)
    names = {*CompletionRequest.model_fields, *COMPLETION_UNSUPPORTED, *HARMLESS} - {"model", "prompt", "seed"}
    nulls = dict.fromkeys(names)
    await complete(client, seed=0, **nulls)
    assert engine.requests[0] == engine.requests[1]
    assert asked(engine) == SamplingParams(max_tokens=16, seed=0)


async def test_every_sampling_parameter_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(
        client,
        max_tokens=5,
        min_tokens=2,
        temperature=0,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"7": 1, "8": -100.0},
        allowed_token_ids=[1, 2],
        banned_token_ids=[3],
        stop_token_ids=[4],
        ignore_eos=True,
        seed=2**64 - 1,
        logprobs=2,
        prompt_logprobs=3,
    )
    assert asked(engine) == SamplingParams(
        max_tokens=5,
        min_tokens=2,
        temperature=0.0,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias=((7, 1.0), (8, -100.0)),
        allowed_tokens=(1, 2),
        banned_tokens=(3,),
        stop_token_ids=(4,),
        ignore_eos=True,
        seed=2**64 - 1,
        logprobs=2,
        prompt_logprobs=3,
    )


async def test_harmless_parameters_change_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"}
    await complete(client, seed=0, prompt_cache_key="k", prompt_cache_retention="24h", **harmless)
    await complete(client, seed=0, best_of=1, suffix="", use_beam_search=False, skip_special_tokens=True, top_k=-1)
    await complete(client, seed=0)
    assert engine.requests[0] == engine.requests[1] == engine.requests[2]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("hé", [[104, 195, 169]]),
        ("", [[257]]),
        ("\0", [[0]]),
        (["a", "b"], [[97], [98]]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [1]], [[97], [1]]),
    ],
)
async def test_prompts_come_as_text_or_token_ids_one_or_several(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: object, tokens: list[list[int]]
) -> None:
    answer = await complete(client, prompt=prompt)
    assert [list(sequence.prompt) for sequence in engine.requests[0]] == tokens
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(tokens)))


async def test_a_long_prompt_is_tokenized_like_a_short_one(engine: FakeEngine) -> None:
    engine.known["tiny"] = replace(engine.known["tiny"], context_length=100_000)
    async with client_of(make_app(engine)) as client:
        await complete(client, prompt="é" * 20_000)
    assert engine.requests[0][0].prompt == tuple(("é" * 20_000).encode())


async def test_choices_are_ordered_by_prompt_and_count_the_prompt_once(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await complete(client, prompt=["ab", "c"], n=2, seed=9)
    assert [sequence.prompt for sequence in engine.requests[0]] == [(97, 98), (97, 98), (99,), (99,)]
    seeds = [derive_seed(9, index) for index in range(4)]
    assert [sequence.params.seed for sequence in engine.requests[0]] == seeds
    assert [choice_of(answer, index)["seed"] for index in range(4)] == seeds
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4 * 13,
        "total_tokens": 3 + 4 * 13,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_request_without_a_seed_gets_a_random_one_and_is_told(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    seeds = [choice_of(await complete(client))["seed"] for _ in range(2)]
    assert len(set(seeds)) == 2
    assert seeds == [sequences[0].params.seed for sequences in engine.requests]


async def test_max_tokens_defaults_to_16_or_the_room_there_is(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, prompt="x" * 505)
    assert asked(engine).max_tokens == 7
    await complete(client, max_completion_tokens=3)
    assert asked(engine).max_tokens == 3


async def test_cached_tokens_are_those_of_each_prompts_first_choice(engine: FakeEngine) -> None:
    plain = recite(b"ok")
    engine.reply = lambda request: [replace(step, num_cached_tokens=16 + request.id) for step in plain(request)]
    async with client_of(make_app(engine)) as client:
        answer = await complete(client, prompt=["x" * 40, "y" * 40], n=2)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 16 + 18}


async def test_a_stop_string_ends_the_choice_and_the_engines_sequence(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await complete(client, stop=["wor", "x"], logprobs=0)
    choice = choice_of(answer)
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("Hello, ", "stop", "wor")
    assert choice["logprobs"]["tokens"] == list("Hello, ")
    assert answer["usage"]["completion_tokens"] == len("Hello, wor")
    assert engine.opened[0].stopped == {0}
    assert engine.opened[0].num_closes == 1


async def test_a_stop_string_can_stay_in_the_text(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, stop="wor", include_stop_str_in_output=True))
    assert choice["text"] == "Hello, wor"


async def test_stop_strings_wait_for_min_tokens(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, stop="l", min_tokens=4))
    assert choice["text"] == "Hel"
    choice = choice_of(await complete(client, stop="l", min_tokens=5))
    assert choice["text"] == "Hello, wor"


async def test_logprobs_have_openais_completion_shape(client: httpx.AsyncClient) -> None:
    logprobs = choice_of(await complete(client, logprobs=2, max_tokens=2))["logprobs"]
    assert logprobs == {
        "tokens": ["H", "e"],
        "token_logprobs": [-0.73, -1.02],
        "top_logprobs": [{"\0": -0.01, "\1": -0.02, "H": -0.73}, {"\0": -0.01, "\1": -0.02, "e": -1.02}],
        "text_offset": [0, 1],
    }


async def test_logprobs_0_reports_the_chosen_token_alone(client: httpx.AsyncClient) -> None:
    logprobs = choice_of(await complete(client, logprobs=0, max_tokens=1))["logprobs"]
    assert logprobs == {
        "tokens": ["H"],
        "token_logprobs": [-0.73],
        "top_logprobs": [{"H": -0.73}],
        "text_offset": [0],
    }


async def test_echo_repeats_the_prompt_and_its_logprobs_with_null_for_the_first(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, prompt="aé", echo=True, logprobs=1, max_tokens=2))
    assert choice["text"] == "aéHe"
    assert choice["logprobs"] == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "H", "e"],
        "token_logprobs": [None, -1.96, -1.7, -0.73, -1.02],
        "top_logprobs": [
            None,
            {"\0": -0.01, "bytes:\\xc3": -1.96},
            {"\0": -0.01, "bytes:\\xa9": -1.7},
            {"\0": -0.01, "H": -0.73},
            {"\0": -0.01, "e": -1.02},
        ],
        "text_offset": [0, 1, 1, 2, 3],
    }
    assert "prompt_logprobs" not in choice


async def test_echo_of_several_token_prompts_with_n_belongs_to_each_choice(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=[[97], [98, 255]], n=2, echo=True, max_tokens=1)
    texts = [choice_of(answer, index)["text"] for index in range(4)]
    assert texts == ["aH", "aH", "b\ufffdH", "b\ufffdH"]


async def test_max_tokens_0_scores_a_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt="ab", echo=True, logprobs=0, max_tokens=0)
    choice = choice_of(answer)
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.99]
    assert answer["usage"]["completion_tokens"] == 0


async def test_prompt_logprobs_are_by_token_id(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, prompt="ab", prompt_logprobs=1))
    assert choice["prompt_logprobs"] == [
        None,
        {
            "0": {"logprob": -0.01, "rank": 1, "decoded_token": "\0"},
            "98": {"logprob": -0.99, "rank": 99, "decoded_token": "b"},
        },
    ]


async def test_token_ids_are_returned_when_asked_for(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, prompt="ab", return_token_ids=True, stop=","))
    assert choice["token_ids"] == list(b"Hello")
    assert choice["prompt_token_ids"] == [97, 98]


async def test_tokens_can_be_named_by_their_ids(client: httpx.AsyncClient) -> None:
    choice = choice_of(await complete(client, logprobs=1, return_tokens_as_token_ids=True, max_tokens=1))
    assert choice["logprobs"]["tokens"] == ["token_id:72"]
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:0": -0.01, "token_id:72": -0.73}]


async def test_minus_infinity_becomes_a_finite_number(engine: FakeEngine) -> None:
    plain = recite(b"ok")

    def reply(request: SequenceRequest) -> Script:
        entry = replace(plain(request)[0].logprobs[0], logprob=float("-inf"), top_logprobs=(float("-inf"),))
        return [replace(plain(request)[0], logprobs=(entry,), finish_reason="length")]

    engine.reply = reply
    async with client_of(make_app(engine)) as client:
        logprobs = choice_of(await complete(client, logprobs=1))["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0]
    assert logprobs["top_logprobs"] == [{"\0": -9999.0, "o": -9999.0}]


async def test_the_parameters_in_force_are_told_with_their_sources(engine: FakeEngine) -> None:
    model = replace(MODEL, defaults=GenerationDefaults(temperature=0.5, top_k=40))
    async with client_of(make_app(engine, model)) as client:
        answer = await complete(client, top_k=5, return_parameters=True)
    parameters = answer["resolved_parameters"]
    assert isinstance(parameters, dict)
    assert parameters["temperature"] == {"value": 0.5, "source": "model"}
    assert parameters["top_k"] == {"value": 5, "source": "request"}
    assert parameters["top_p"] == {"value": 1.0, "source": "server"}
    assert parameters["seed"]["source"] == "random"
    assert asked(engine).temperature == 0.5


async def test_prefixes_are_shared_between_requests_of_one_key_and_salt_only() -> None:
    engine = FakeEngine()
    app = make_app(engine, settings=ApiSettings(api_keys=("one", "two")))
    salts = []
    for key, fields in (
        ("one", {}),
        ("one", {}),
        ("two", {}),
        ("one", {"cache_salt": "x"}),
        ("two", {"cache_salt": "x"}),
    ):
        async with client_of(app, authorization=f"Bearer {key}") as client:
            await complete(client, **fields)
        salts.append(engine.requests[-1][0].cache_salt)
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4


async def test_one_key_or_none_means_one_prefix_cache(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client)
    async with client_of(
        make_app(engine, settings=ApiSettings(api_keys=("one",))), authorization="Bearer one"
    ) as keyed:
        await complete(keyed)
    assert [sequences[0].cache_salt for sequences in engine.requests] == ["", ""]


async def test_answers_do_not_depend_on_how_steps_group_tokens() -> None:
    answers: list[Json] = []
    for group in (1, 3, 100):
        engine = FakeEngine(reply=recite("déjà vu, END".encode(), group))
        async with client_of(make_app(engine)) as client:
            answers.append(await complete(client, max_tokens=30, stop=["EN"], logprobs=1, seed=1))
    assert answers[0] == answers[1] == answers[2]
