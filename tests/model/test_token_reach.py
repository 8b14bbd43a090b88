"""How much text a token can cover: a bound that holds for every text, or none."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from model.tokenizer import Tokenizer, train_bpe_tokenizer, train_char_tokenizer

CORPUS = "to be or not to be, that is the question: 你好, naïve 🙂\n" * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def metaspace(normalizer: normalizers.Normalizer | None, pieces: list[str]) -> tokenizers.Tokenizer:
    """Long pieces, a mark for spaces, and bytes for all else."""
    vocabulary = {piece: index for index, piece in enumerate([*BYTES, *pieces])}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    library.normalizer = normalizer
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return library


def merged_spaces() -> tokenizers.Tokenizer:
    """One token for four spaces: 4 bytes as text comes, 12 as it is written in the vocabulary."""
    pieces = ["▁", "▁▁", "▁▁▁▁"]
    vocabulary = {piece: index for index, piece in enumerate([*BYTES, *pieces])}
    merges = [("▁", "▁"), ("▁▁", "▁▁")]
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return library


BOUNDED = {
    "char": train_char_tokenizer(CORPUS),
    "bpe": train_bpe_tokenizer([CORPUS], 400),
    "spaces": Tokenizer(merged_spaces(), {}),
}


@pytest.mark.parametrize("tokenizer", BOUNDED.values(), ids=BOUNDED)
@given(st.text(st.sampled_from("to be▁你ï🙂\n,<|>") | st.characters(codec="utf-8")) | st.just("<|endoftext|>" * 5))
@settings(deadline=None, max_examples=200)
def test_no_text_has_fewer_tokens_than_its_length_allows(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.max_token_bytes is not None
    assert len(tokenizer.encode(text)) * tokenizer.max_token_bytes >= len(text.encode())


@pytest.mark.parametrize(
    ("name", "text"), [("spaces", "▁▁▁▁" * 9), ("char", "<|endoftext|>"), ("bpe", "<|endoftext|>")]
)
def test_the_bound_is_reached_by_text_whose_tokens_stand_for_fewer_bytes(name: str, text: str) -> None:
    tokenizer = BOUNDED[name]
    bound = tokenizer.max_token_bytes
    assert bound is not None
    tokens = tokenizer.encode(text)
    assert len(text.encode()) / len(tokens) > max(len(tokenizer.token_bytes(token)) for token in tokens)
    assert len(tokens) * bound >= len(text.encode())


def test_the_bound_is_the_longest_entry() -> None:
    assert train_char_tokenizer("a").max_token_bytes == len("<|endoftext|>")
    assert Tokenizer(metaspace(None, ["x" * 20]), {}).max_token_bytes == 20


def shortening() -> dict[str, tokenizers.Tokenizer]:
    """Vocabularies in which one token, or none, may cover any amount of text."""
    composed = metaspace(normalizers.NFC(), [])
    stripped = metaspace(normalizers.Strip(), [])
    nested = metaspace(normalizers.Sequence([normalizers.Sequence([normalizers.Lowercase()])]), [])
    replaced = metaspace(normalizers.Replace("aa", "a"), [])
    patterned = metaspace(normalizers.Replace(tokenizers.Regex("a+"), "a"), [])
    without_spaces = metaspace(None, [])
    without_spaces.pre_tokenizer = pre_tokenizers.Whitespace()
    removed = metaspace(None, [])
    removed.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    greedy = metaspace(None, [])
    greedy.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    dropped = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    byte_level = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel()
    return {
        "composed": composed,
        "stripped": stripped,
        "nested": nested,
        "replaced": replaced,
        "patterned": patterned,
        "without spaces": without_spaces,
        "removed": removed,
        "greedy": greedy,
        "words": words,
        "dropped": dropped,
        "byte level without bytes": byte_level,
    }


@pytest.mark.parametrize("name", shortening())
def test_a_vocabulary_that_may_shorten_text_has_no_bound(name: str) -> None:
    assert Tokenizer(shortening()[name], {}).max_token_bytes is None


def test_stages_that_only_add_keep_the_bound() -> None:
    library = metaspace(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), [])
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split("x", "isolated")]
    )
    assert Tokenizer(library, {}).max_token_bytes == len("<0x00>")


def test_an_added_token_is_looked_for_as_the_normalizer_writes_it() -> None:
    library = metaspace(normalizers.Replace(" ", "▁▁▁▁"), [])
    library.add_tokens([AddedToken("a b", normalized=True)])
    tokenizer = Tokenizer(library, {})
    text = "a▁▁▁▁b"
    assert len(tokenizer.encode(text)) == 1
    assert tokenizer.max_token_bytes == len(text.encode())
