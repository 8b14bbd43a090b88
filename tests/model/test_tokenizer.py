import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import GPT2_LIKE, MIXTRAL_LIKE, OWN, PLAIN, random_model
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.config_json import config_json
from model.files import CheckpointError
from model.tokenizer import END_OF_TEXT, Tokenizer, train_bpe_tokenizer, train_char_tokenizer

CORPUS = (
    "First Citizen:\nBefore we proceed any further, hear me speak. Naïve café: 你好, 🙂!\n\tAll: Speak, speak. " * 8
)
CHARS = train_char_tokenizer(CORPUS)
PAIRS = train_bpe_tokenizer([CORPUS], 320)
TRAINED = pytest.mark.parametrize("tokenizer", [CHARS, PAIRS], ids=["char", "bpe"])
# Special tokens written out in a text are special tokens: the one thing that does not come back as text.
texts = st.text().filter(lambda text: END_OF_TEXT not in text)


def metaspace_tokenizer() -> Tokenizer:
    """A small vocabulary in the manner of SentencePiece: a mark for spaces, bytes for what is unknown."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁thecaso", "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(piece, normalized=False) for piece in ("<unk>", "<s>", "</s>")])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(library, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


@TRAINED
@given(texts)
@settings(deadline=None, max_examples=200)
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@TRAINED
@given(texts)
@settings(deadline=None, max_examples=200)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text)) == text.encode()


@TRAINED
@given(st.data())
@settings(deadline=None, max_examples=200)
def test_decoding_any_tokens_joins_their_bytes(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    joined = b"".join(tokenizer.token_bytes(token) for token in ids)
    assert tokenizer.decode(ids) == joined.decode(errors="replace")


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_byte_level_decoding_is_that_of_the_library(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, PAIRS.vocab_size - 1)))
    assert PAIRS.decode(ids) == PAIRS._library.decode(ids)


def test_every_character_of_the_text_is_one_token() -> None:
    ids = CHARS.encode(CORPUS)
    assert len(ids) == len(CORPUS)
    assert min(ids) > 256
    assert CHARS.decode(ids) == CORPUS
    assert CHARS.vocab_size == 1 + 256 + len(set(CORPUS))


def test_a_character_that_was_never_seen_becomes_its_bytes() -> None:
    assert "ß" not in CORPUS
    ids = CHARS.encode("aßa")
    assert [CHARS.token_bytes(token) for token in ids] == [b"a", b"\xc3", b"\x9f", b"a"]


def test_text_that_looks_like_a_byte_token_is_text() -> None:
    assert CHARS.decode(CHARS.encode("<0x41>")) == "<0x41>"


def test_merged_pairs_make_fewer_tokens_than_bytes() -> None:
    assert len(PAIRS.encode(CORPUS)) < len(CORPUS.encode()) / 2
    assert PAIRS.vocab_size == 320


def test_training_twice_gives_the_same_vocabulary(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_bpe_tokenizer(iter([CORPUS]), 320).save(tmp_path / name)
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 256"):
        train_bpe_tokenizer([CORPUS], 256)
    assert train_bpe_tokenizer([CORPUS], 257).decode(train_bpe_tokenizer([CORPUS], 257).encode("ß")) == "ß"


def test_a_small_corpus_ends_training_early() -> None:
    assert train_bpe_tokenizer(["ab"], 1000).vocab_size == 258


@TRAINED
def test_end_of_text_is_special_first_and_last_token(tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.eos_token_ids
    assert tokenizer.bos_token_id == end
    assert tokenizer.special_ids == {end}
    assert tokenizer.token_bytes(end) == b""
    assert tokenizer.encode(f"a{END_OF_TEXT}b") == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
    assert tokenizer.decode(tokenizer.encode(f"a{END_OF_TEXT}b")) == "ab"


@TRAINED
def test_ids_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    for token in (tokenizer.vocab_size, 10**9, -1):
        assert tokenizer.token_bytes(token) == b""
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) != b""


@TRAINED
def test_a_lone_surrogate_is_a_value_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800")


@TRAINED
@pytest.mark.parametrize(
    "config",
    [None, GPT2_LIKE, PLAIN, replace(PLAIN, sliding_window=4), MIXTRAL_LIKE, OWN["alibi"]],
    ids=["alone", "gpt2", "llama", "mistral", "mixtral", "minigpt"],
)
def test_auto_tokenizer_opens_the_folder_with_equal_ids(
    tokenizer: Tokenizer, config: ModelConfig | None, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config_json(config, dtype="float32")))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (*tokenizer.eos_token_ids, tokenizer.bos_token_id)
    for text in (CORPUS, "", " ", "ßæ 漢字\x00\r\n", "  two  spaces ", f"a{END_OF_TEXT}b", "it's 1234"):
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [CHARS, PAIRS, metaspace_tokenizer()], ids=["char", "bpe", "metaspace"])
def test_loading_a_saved_tokenizer_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for name in ("vocab_size", "eos_token_ids", "bos_token_id", "special_ids", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    assert loaded.encode(CORPUS) == tokenizer.encode(CORPUS)
    for token in range(tokenizer.vocab_size):
        assert loaded.token_bytes(token) == tokenizer.token_bytes(token)


def test_a_sentencepiece_vocabulary_gives_spaces_and_bytes() -> None:
    tokenizer = metaspace_tokenizer()
    ids = tokenizer.encode("the cat\n漢")
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.encode("the cat\n漢", add_special_tokens=False) == ids[1:]
    pieces = [tokenizer.token_bytes(token) for token in ids]
    assert pieces == [b"", b" the", b" ", b"c", b"a", b"t", b"\n", b"\xe6", b"\xbc", b"\xa2"]
    # The space before a text is the library's to trim, as it sees the start of the text; a continuation keeps it.
    assert tokenizer.decode(ids) == " the cat\n漢"
    assert tokenizer._library.decode(ids) == "the cat\n漢"
    assert tokenizer.eos_token_ids == (2,)


@pytest.mark.parametrize("decoder", [decoders.Metaspace(), decoders.Metaspace("_")])
def test_metaspace_decoders_are_read(decoder: decoders.Metaspace) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "_b": 1}, unk_token="▁a"))
    library.decoder = decoder
    tokenizer = Tokenizer(library, {})
    wanted = [b" a", b"_b"] if decoder.replacement == "▁" else ["▁a".encode(), b" b"]
    assert [tokenizer.token_bytes(token) for token in (0, 1)] == wanted


def test_added_tokens_that_are_not_special_stand_for_their_text(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["<think>", "<é>"])
    tokenizer = Tokenizer(library, {})
    text = "a<think>b<é>"
    assert tokenizer.vocab_size == PAIRS.vocab_size + 2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_ids == PAIRS.special_ids


def test_ids_that_a_vocabulary_skips_stand_for_nothing() -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = Tokenizer(library, {})
    assert tokenizer.vocab_size == 6
    assert [tokenizer.token_bytes(token) for token in range(6)] == [b"a", b"", b"", b"", b"", b"b"]


def test_saved_truncation_and_padding_lose_no_text(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=2000)
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(CORPUS) == PAIRS.encode(CORPUS)


@pytest.mark.parametrize(
    ("files", "eos", "bos"),
    [
        ({}, (0,), 0),
        ({"config.json": {"eos_token_id": 5, "bos_token_id": 6}}, (5,), 6),
        ({"config.json": {"eos_token_id": [5, 7]}}, (5, 7), 0),
        ({"config.json": {"eos_token_id": None}}, (0,), 0),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": [8, 9]}}, (8, 9), 0),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {}}, (5,), 0),
        ({"tokenizer_config.json": {}}, (), None),
        (
            {"tokenizer_config.json": {"eos_token": {"content": "a"}, "bos_token": "b"}},
            tuple(PAIRS.encode("a")),
            PAIRS.encode("b")[0],
        ),
    ],
)
def test_end_tokens_come_from_the_first_file_that_states_them(
    files: dict[str, object], eos: tuple[int, ...], bos: int | None, tmp_path: Path
) -> None:
    PAIRS.save(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_token_ids, tokenizer.bos_token_id) == (eos, bos)


def test_a_checkpoint_and_its_tokenizer_share_a_folder(tmp_path: Path) -> None:
    save_checkpoint(random_model(PLAIN), tmp_path, eos_token_ids=PAIRS.eos_token_ids)
    PAIRS.save(tmp_path)
    assert Tokenizer.load(tmp_path).eos_token_ids == PAIRS.eos_token_ids


def test_chat_templates_are_found_in_either_file_and_kept(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for stated, wanted in (("{{ messages }}", "{{ messages }}"), (named, "D"), ([], None)):
        raw = {"eos_token": END_OF_TEXT, "chat_template": stated}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
        loaded = Tokenizer.load(tmp_path)
        assert loaded.chat_template == wanted
        loaded.save(tmp_path / "copy")
        assert Tokenizer.load(tmp_path / "copy").chat_template == wanted
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(tmp_path).chat_template == "J"


def damaged(edit: Callable[[dict[str, Any]], object]) -> bytes:
    raw = json.loads(PAIRS._library.to_str())
    edit(raw)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is no valid tokenizer"),
        (b"{", "is no valid tokenizer"),
        (b"[]", "is no valid tokenizer"),
        (b"{}", "is no valid tokenizer"),
        (b"\xff", "is no valid tokenizer"),
        (damaged(lambda raw: raw.update(model=3)), "is no valid tokenizer"),
        (damaged(lambda raw: raw.update(decoder={"type": "Mystery"})), "is no valid tokenizer"),
        (damaged(lambda raw: raw.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})), "WordPiece"),
        (damaged(lambda raw: raw["model"].update(dropout=0.1)), "dropout makes encoding random"),
        (damaged(lambda raw: raw["model"]["vocab"].update(a=2**31)), "the vocabulary ends at"),
    ],
    ids=range(10),
)
def test_a_malformed_tokenizer_names_the_file(content: bytes, match: str, tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{match}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: holds no JSON object"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', r"tokenizer_config\.json: eos_token '</s>' is not in"),
        ("tokenizer_config.json", '{"eos_token": 3}', r"tokenizer_config\.json: eos_token 3 is not in"),
        ("tokenizer_config.json", '{"chat_template": 3}', r"tokenizer_config\.json: chat_template is no text"),
        ("config.json", '{"eos_token_id": "5"}', r"config\.json: eos_token_id is '5'"),
        ("config.json", '{"eos_token_id": [5, true]}', r"config\.json: eos_token_id is"),
        ("config.json", '{"eos_token_id": -1}', r"config\.json: eos_token_id is -1"),
        ("config.json", '{"eos_token_id": 320}', r"eos_token_id 320 is not in the vocabulary, which ends at 319"),
        ("generation_config.json", "{", r"generation_config\.json: is not valid JSON"),
        ("generation_config.json", '{"bos_token_id": 99999}', "bos_token_id 99999 is not in the vocabulary"),
    ],
)
def test_malformed_companions_name_file_and_field(name: str, content: str, match: str, tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=match):
        Tokenizer.load(tmp_path)


def test_vocabularies_that_fail_on_some_texts_are_refused() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    with pytest.raises(CheckpointError, match="unk_token '<unk>' is not in the vocabulary"):
        Tokenizer(words, {})
    unigrams = tokenizers.Tokenizer(models.Unigram([("a", -1.0)]))
    with pytest.raises(CheckpointError, match="unk_id is missing"):
        Tokenizer(unigrams, {})


def test_a_chat_template_must_be_utf8(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: is not UTF-8"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_library_trained_vocabulary_round_trips_too() -> None:
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.train_from_iterator(
        [CORPUS], trainers.UnigramTrainer(vocab_size=120, show_progress=False, unk_token="<unk>")
    )
    tokenizer = Tokenizer(library, {})
    assert tokenizer.decode(tokenizer.encode("we speak")) == " we speak"
