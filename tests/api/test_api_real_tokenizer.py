"""The project's own tokenizers under the HTTP edge."""

import subprocess
import sys
from dataclasses import replace

import pytest
from api_apps import MODEL, client_of, make_app
from api_requests import ask, choice_of, complete, stream
from fake_engine import FakeEngine, Script, info
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import train_bpe_tokenizer, train_char_tokenizer
from server.api.choice import Choice, ChoiceOptions
from server.api.served_model import Tokenizer
from server.api.stop_strings import StopStrings
from server.engine.types import SequenceOutput, SequenceRequest

TEXT = "the quick brown fox, the lazy dög and \U0001f600\n" * 20


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_bpe_tokenizer([TEXT], 320) if request.param == "bpe" else train_char_tokenizer(TEXT)


@given(data=st.data())
def test_any_tokens_one_by_one_make_the_tokenizers_own_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    choice = Choice(tokenizer, ChoiceOptions(StopStrings([])))
    text = ""
    for token in tokens:
        choice.push(SequenceOutput(0, (token,)))
        text += choice.take().text
    choice.push(SequenceOutput(0, finish_reason="length"))
    assert text + choice.take().text == tokenizer.decode(tokens)


# The name of the special token means that token, which is no text.
@given(text=st.text(max_size=40).filter(lambda text: "<|endoftext|>" not in text))
def test_any_text_comes_back_through_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    choice = Choice(tokenizer, ChoiceOptions(StopStrings([])))
    choice.push(SequenceOutput(0, tuple(tokenizer.encode(text)), finish_reason="length"))
    assert choice.take().text == text


@pytest.mark.anyio
async def test_whole_and_streamed_answers_agree_with_echo_and_stop_strings(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode("the lazy dög and \U0001f600, the fox")

    def reply(request: SequenceRequest) -> Script:
        return [
            *(SequenceOutput(0, (token,)) for token in said),
            SequenceOutput(
                0, (tokenizer.eos_token_ids[0],), finish_reason="stop", stop_token=tokenizer.eos_token_ids[0]
            ),
        ]

    engine = FakeEngine(reply=reply, known={"tiny": replace(info(), vocab_size=tokenizer.vocab_size)})
    async with client_of(make_app(engine, replace(MODEL, tokenizer=tokenizer))) as client:
        fields = {"prompt": "quick brown", "echo": True, "stop": ["\U0001f600, th"], "max_tokens": 100}
        whole = choice_of(await complete(client, **fields))
        events = await stream(client, "/v1/completions", fields)
        assert whole["text"] == "quick brownthe lazy dög and "
        assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
        tokens = await ask(client, "/tokenize", {"prompt": "dög", "return_token_strs": True})
        assert await ask(client, "/detokenize", {"tokens": tokens["tokens"]}) == {"prompt": "dög"}
        empty = await complete(client, prompt="", max_tokens=5)
        assert empty["usage"]["prompt_tokens"] == 1


def test_the_http_side_never_imports_torch() -> None:
    code = "import sys, server.api.app, model.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
