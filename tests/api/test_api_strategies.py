"""Strategies at the edge: orders, presets, words, what is in force and why, and what is refused by name."""

from dataclasses import replace

import httpx
import pytest
from api_apps import MODEL, client_of, make_app
from api_requests import Json, complete, refused
from fake_engine import BOS, EOS, VOCAB_SIZE, ByteTokenizer, FakeEngine, info

from server.api.parameters import Resolved, resolve
from server.api.schemas import FIELDS, CompletionRequest
from server.api.schemas_chat import ChatRequest
from server.api.served_model import GenerationDefaults
from server.api.strategies import PRESETS
from server.api.validation import validate
from server.api.words import Spellings
from server.engine.params import SamplingParams
from server.engine.sampling.order import DEFAULT_ORDER, SAMPLERS
from server.errors import BadRequest

pytestmark = pytest.mark.anyio


def resolved(defaults: GenerationDefaults | None = None, /, **fields: object) -> Resolved:
    asked = validate(CompletionRequest, {"model": "tiny", "prompt": "hi", **fields})
    return resolve(asked, defaults or GenerationDefaults(), info(), 5, Spellings(MODEL))


def params(**fields: object) -> SamplingParams:
    return resolved(None, **fields).params


def refusal(**fields: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        resolved(None, **fields)
    return caught.value


VALUES: dict[str, object] = {
    "temperature": 0.5,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 2.0,
    "top_n_sigma": 1.5,
    "top_k": 7,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.002,
    "top_a": 0.1,
    "top_p": 0.8,
    "min_p": 0.05,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
    "repeat_last_n": 64,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_range": 100,
    "no_repeat_ngram_size": 3,
    "min_tokens": 2,
    "ignore_eos": True,
    "seed": 9,
}
MIROSTAT: dict[str, object] = {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2}
LISTS = {"logit_bias", "allowed_tokens", "banned_tokens", "stop_token_ids", "bad_words", "dry_breakers", "samplers"}


def test_every_sampling_parameter_is_a_field_and_reaches_the_engine() -> None:
    assert set(FIELDS) == set(VALUES) | set(MIROSTAT) | LISTS
    for values in (VALUES, MIROSTAT):
        made = resolved(None, **values)
        assert {name: getattr(made.params, name) for name in values} == values
        assert {made.in_force[name].source for name in values} == {"request"}


OUT_OF_RANGE: list[tuple[str, object, list[str]]] = [
    ("dynatemp_range", -0.1, ["-0.1", "0.0 and 10.0"]),
    ("dynatemp_exponent", 0, ["0", "above 0", "10.0"]),
    ("top_n_sigma", -1, ["-1", "0.0 and 100.0"]),
    ("typical_p", 0, ["above 0", "1.0"]),
    ("typical_p", 1.5, ["1.5", "1.0"]),
    ("epsilon_cutoff", 1.5, ["1.5", "0.0 and 1.0"]),
    ("eta_cutoff", -1e-9, ["-1e-09", "0.0 and 1.0"]),
    ("top_a", 2, ["2", "0.0 and 1.0"]),
    ("xtc_probability", 1.01, ["1.01", "0.0 and 1.0"]),
    ("xtc_threshold", -1, ["-1", "0.0 and 1.0"]),
    ("repeat_last_n", -2, ["-2", "at least -1"]),
    ("repeat_last_n", 2**31, [str(2**31), str(2**31 - 1)]),
    ("dry_multiplier", 101, ["101", "0.0 and 100.0"]),
    ("dry_base", 0.9, ["0.9", "1.0 and 10.0"]),
    ("dry_allowed_length", 0, ["0", "at least 1"]),
    ("dry_allowed_length", 101, ["101", "at most 100"]),
    ("dry_allowed_length", 2.0, ["2.0", "an integer"]),
    ("dry_range", -2, ["-2", "at least -1"]),
    ("no_repeat_ngram_size", -1, ["-1", "at least 0"]),
    ("no_repeat_ngram_size", 101, ["101", "at most 100"]),
    ("mirostat", 3, ["3", "at most 2"]),
    ("mirostat", True, ["true", "an integer"]),
    ("mirostat_tau", -1, ["-1", "0.0 and 100.0"]),
    ("mirostat_eta", 1.5, ["1.5", "0.0 and 1.0"]),
    ("mirostat_eta", "x", ['"x"', "a number"]),
    ("strategy", "gpt", ['"gpt"', "llama.cpp"]),
    ("strategy", 5, ["5", "a string"]),
    ("samplers", "top_k", ['"top_k"', "an array"]),
    ("samplers", ["top_k"] * 15, ["15", "14"]),
    ("dry_sequence_breakers", "\n", ["an array"]),
    ("dry_sequence_breakers", ["a"] * 17, ["17", "16"]),
    ("bad_words", "x", ["an array"]),
    ("bad_words", ["x"] * 1025, ["1025", "1024"]),
    ("bad_words", [[258]], ["258", "257"]),
]
WRONG_INSIDE: list[tuple[str, object, str, list[str]]] = [
    ("samplers", ["top_k", "top_z"], "samplers[1]", ["top_z", "must be one of", "min_p"]),
    ("samplers", ["top_k", "min_p", "top_k"], "samplers[2]", ["top_k", "once"]),
    ("samplers", ["top_k", 5], "samplers[1]", ["5", "a string"]),
    ("dry_sequence_breakers", ["a", ""], "dry_sequence_breakers[1]", ['""', "at least one character"]),
    ("bad_words", ["a", ""], "bad_words[1]", ['""', "at least one character"]),
    ("bad_words", ["a", []], "bad_words[1]", ["at least one token id"]),
    ("bad_words", [[1, -1]], "bad_words[0][1]", ["-1"]),
    ("bad_words", [[1] * 65], "bad_words[0]", ["65", "64"]),
    ("bad_words", ["x" * 100], "bad_words[0]", ["100 tokens", "64"]),
    ("bad_words", ["x" * 257], "bad_words[0]", ["257", "256"]),
]


@pytest.mark.parametrize(
    ("field", "value", "parameter", "words"), [(f, v, f, w) for f, v, w in OUT_OF_RANGE] + WRONG_INSIDE
)
def test_wrong_values_are_refused_by_name(field: str, value: object, parameter: str, words: list[str]) -> None:
    error = refusal(**{field: value})
    assert error.parameter == parameter
    assert all(word in str(error) for word in words), error


async def test_a_wrong_value_is_a_400_of_completions_and_chat(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": "hi", "top_a": 2})
    assert (error["param"], error["code"]) == ("top_a", "invalid_value")
    messages = [{"role": "user", "content": "hi"}]
    error = await refused(client, "/v1/chat/completions", {"model": "tiny", "messages": messages, "mirostat": 7})
    assert (error["param"], error["code"]) == ("mirostat", "invalid_value")
    assert not engine.opened


def test_the_order_is_the_requests() -> None:
    assert params().samplers == DEFAULT_ORDER
    assert params(samplers=["min_p", "temperature"]).samplers == ("min_p", "temperature")
    assert params(samplers=[]).samplers == ()


# One parameter of each stage that asks for something.
ASKING = {"dry": "dry_multiplier", "xtc": "xtc_probability"}


@pytest.mark.parametrize("stage", list(SAMPLERS))
def test_a_parameter_of_a_stage_left_out_is_refused_unless_it_asks_for_nothing(stage: str) -> None:
    name = ASKING.get(stage, stage)
    others = [other for other in SAMPLERS if other != stage]
    error = refusal(**{name: VALUES[name]}, samplers=others)
    assert error.parameter == name
    assert f"samplers leaves out {stage}" in str(error)
    neutral = getattr(SamplingParams(), name)
    assert getattr(params(**{name: neutral}, samplers=others), name) == neutral


def test_the_checkpoints_value_for_a_stage_left_out_is_not_applied() -> None:
    made = resolved(GenerationDefaults(top_k=5, temperature=0.5), samplers=["temperature"])
    assert (made.params.top_k, made.params.temperature) == (0, 0.5)
    assert (made.in_force["top_k"].source, made.in_force["temperature"].source) == ("request", "model")


def test_one_listed_penalty_is_enough_for_their_window() -> None:
    assert params(samplers=["presence_penalty"], repeat_last_n=5).repeat_last_n == 5
    assert "repetition_penalty and" in str(refusal(samplers=["top_k"], repeat_last_n=5))


def test_mirostat_takes_the_place_of_what_cuts_off() -> None:
    error = refusal(mirostat=2, top_p=0.9)
    assert error.parameter == "top_p"
    assert "mirostat is 2" in str(error)
    made = params(mirostat=1, temperature=0.7, frequency_penalty=0.5, dry_multiplier=1.0)
    assert (made.temperature, made.frequency_penalty) == (0.7, 0.5)
    made = resolved(GenerationDefaults(top_k=5), mirostat=2).params
    assert made.top_k == 0


PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
ORDERS = {
    "vllm": (*PENALTIES, "temperature", "min_p", "top_k", "top_p"),
    "llama.cpp": (
        *PENALTIES,
        "dry",
        "top_n_sigma",
        "top_k",
        "typical_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    ),
    "transformers": (
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    ),
    "openai": ("frequency_penalty", "presence_penalty", "temperature", "top_p"),
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_the_order_of_its_engine(name: str) -> None:
    made = resolved(strategy=name)
    assert made.params.samplers == ORDERS[name]
    assert made.in_force["samplers"].source == "preset"
    assert made.in_force["strategy"].value == name
    assert set(PRESETS[name].values) <= {
        parameter for stage in ORDERS[name] for parameter in SAMPLERS[stage].parameters
    }


def test_the_transformers_order_is_the_installed_librarys() -> None:
    """Its filters, all asked for, in the order in which the library builds them."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=60, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    asked = dict.fromkeys(ORDERS["transformers"], 0.5) | {"top_k": 5, "repetition_penalty": 1.5}
    generation = transformers.GenerationConfig(do_sample=True, num_beams=1, **asked)
    processors = model._get_logits_processor(generation, input_ids_seq_length=1, device=torch.device("cpu"))
    names = [type(processor).__name__.removesuffix("LogitsWarper") for processor in processors]
    expected = ["Temperature", "TopK", "TopP", "MinP", "Typical", "Epsilon", "Eta"]
    assert names == ["RepetitionPenaltyLogitsProcessor", *expected]


def test_request_comes_before_preset_before_checkpoint_before_server() -> None:
    defaults = GenerationDefaults(temperature=0.3, top_k=3, repetition_penalty=1.5)
    made = resolved(defaults, strategy="llama.cpp", top_k=9)
    told = {name: (item.value, item.source) for name, item in made.in_force.items()}
    assert told["top_k"] == (9, "request")
    assert told["temperature"] == (0.8, "preset")
    assert told["xtc_threshold"] == (0.1, "server")
    assert made.params.temperature == 0.8
    assert resolved(defaults, strategy="vllm").in_force["repetition_penalty"].source == "model"


def test_a_parameter_the_presets_engine_does_not_have_is_refused() -> None:
    error = refusal(strategy="openai", top_k=5)
    assert (error.parameter, "samplers leaves out top_k" in str(error)) == ("top_k", True)
    assert params(strategy="openai", top_k=5, samplers=["top_k"]).top_k == 5


class WordTokenizer(ByteTokenizer):
    """Bytes, and two tokens of several bytes each."""

    vocab_size = BOS + 3

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        while text:
            piece = next((p for p in (" cat", "cat:") if text.startswith(p)), text[0])
            ids += {" cat": [258], "cat:": [259]}.get(piece) or list(piece.encode())
            text = text[len(piece) :]
        return ids

    def token_bytes(self, id: int) -> bytes:
        return {258: b" cat", 259: b"cat:"}.get(id) or super().token_bytes(id)


def words_of(**fields: object) -> SamplingParams:
    asked = validate(CompletionRequest, {"model": "tiny", "prompt": "hi", **fields})
    large = replace(info(), vocab_size=260)
    return resolve(asked, GenerationDefaults(), large, 5, Spellings(replace(MODEL, tokenizer=WordTokenizer()))).params


def test_bad_words_become_token_sequences_with_and_without_a_space_before_them() -> None:
    assert words_of(bad_words=["cat", [1, 2], "cat"]).bad_words == ((99, 97, 116), (258,), (1, 2))
    assert words_of(bad_words=["ab"]).bad_words == ((97, 98),)  # " ab" ends with it


def test_breakers_become_every_token_that_contains_them() -> None:
    assert words_of(dry_multiplier=1.0, dry_sequence_breakers=[":"]).dry_breakers == ((58,), (259,))
    assert words_of(dry_multiplier=1.0, dry_sequence_breakers=["at"]).dry_breakers == ((258,), (259,))
    assert words_of(dry_multiplier=1.0, dry_sequence_breakers=["ab"]).dry_breakers == ((97, 98),)


def test_dry_has_the_usual_breakers_and_no_others_cost_anything() -> None:
    assert words_of(dry_multiplier=1.0).dry_breakers == ((10,), (58,), (259,), (34,), (42,))
    assert words_of(dry_multiplier=1.0, dry_sequence_breakers=[]).dry_breakers == ()
    assert words_of().dry_breakers == ()
    assert resolved().in_force["dry_sequence_breakers"].value == ("\n", ":", '"', "*")


def test_a_word_without_tokens_is_refused() -> None:
    class Mute(ByteTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return []

    asked = validate(CompletionRequest, {"model": "tiny", "prompt": "hi", "bad_words": [[5], "ä"]})
    with pytest.raises(BadRequest, match=r"bad_words\[1\] has no tokens"):
        resolve(asked, GenerationDefaults(), info(), 5, Spellings(replace(MODEL, tokenizer=Mute())))


def test_everything_the_answer_depends_on_is_told() -> None:
    made = resolved(n=2, stop=["x"])
    assert set(FIELDS.values()) <= set(made.in_force)
    told = {name: (item.value, item.source) for name, item in made.told([7, 9]).items()}
    assert told["n"] == (2, "request")
    assert told["stop"] == (["x"], "request")
    assert told["add_special_tokens"] == (True, "server")
    assert told["include_stop_str_in_output"] == (False, "server")
    assert told["strategy"] == (None, "server")
    assert told["seed"] == (5, "random")
    assert told["max_tokens"] == (9, "server")
    assert resolved(max_completion_tokens=3).told([3])["max_tokens"].source == "request"


def test_chat_adds_no_special_tokens_unless_asked() -> None:
    body: Json = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    made = resolve(validate(ChatRequest, body), GenerationDefaults(), info(), 5, Spellings(MODEL))
    assert made.in_force["add_special_tokens"].value is False


async def test_the_answer_carries_resolved_parameters_when_asked(engine: FakeEngine) -> None:
    async with client_of(make_app(engine, MODEL)) as client:
        answer = await complete(client, strategy="transformers", typical_p=0.5, return_parameters=True)
        assert "resolved_parameters" not in await complete(client)
    told = answer["resolved_parameters"]
    assert told["top_k"] == {"value": 50, "source": "preset"}
    assert told["typical_p"] == {"value": 0.5, "source": "request"}
    assert told["samplers"] == {"value": list(ORDERS["transformers"]), "source": "preset"}
    assert "parameters" not in answer


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"allowed_token_ids": [5, 6], "bad_words": [[5], [6]]}, "bad_words"),
        ({"allowed_token_ids": [5, 6], "banned_token_ids": [5], "bad_words": [[6]]}, "bad_words"),
        ({"bad_words": [[token] for token in range(VOCAB_SIZE)]}, "bad_words"),
        ({"allowed_token_ids": [5, 6], "banned_token_ids": [6, 5]}, "allowed_token_ids"),
        ({"allowed_token_ids": [EOS], "min_tokens": 1}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"banned_token_ids": list(range(VOCAB_SIZE))}, "banned_token_ids"),
    ],
)
async def test_constraints_that_leave_nothing_are_refused(client: httpx.AsyncClient, fields: Json, blamed: str) -> None:
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": "hi", **fields})
    assert error["param"] == blamed
    assert error["message"] == f"{blamed} leaves no token to choose from."


async def test_constraints_that_leave_one_token_are_not(client: httpx.AsyncClient) -> None:
    await complete(client, allowed_token_ids=[5, 6], bad_words=[[5], [6, 6]], banned_token_ids=[7])
    await complete(client, bad_words=[[token] for token in range(1, VOCAB_SIZE)])
