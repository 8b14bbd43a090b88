"""Tokenizers: text to token ids and back, kept in the files transformers reads. Imports no torch, knows no model.

`encode` never loses text for the vocabularies trained here; see `train_char_tokenizer` for unknown characters.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from model.config import LIMITS
from model.files import CheckpointError, json_bytes, read_bytes, read_json_if_present, replace_bytes
from model.token_bytes import PieceBytes, piece_reader
from model.token_reach import max_token_bytes

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

# Vocabularies of a million entries stay below this.
_MAX_TOKENIZER_BYTES = 256_000_000
_MAX_TEMPLATE_BYTES = 1_000_000
# generation_config.json has the last word, as it does in transformers.
_TOKEN_ID_FILES = ("generation_config.json", "config.json")


class Tokenizer:
    """A vocabulary with its special tokens and chat template.

    `eos_token_ids` and `bos_token_id` given here override what `settings` (tokenizer_config.json) say by name.
    `max_token_bytes` is the most UTF-8 bytes of text that one token can cover, None if the vocabulary sets no bound.
    Raises CheckpointError when the vocabulary is not a plain function of the text or names tokens it does not have.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        settings: Mapping[str, object],
        *,
        chat_template: str | None = None,
        eos_token_ids: tuple[int, ...] = (),
        bos_token_id: int | None = None,
    ) -> None:
        # Encoding shortens and pads nothing, whatever the file was saved with: that would lose or invent text.
        library.no_truncation()
        library.no_padding()
        self.vocab_size = _vocab_size(library)
        description = json.loads(library.to_str())
        _check_total(description["model"])
        self._library = library
        self._settings = dict(settings)
        self._bytes = _token_table(library, piece_reader(description["decoder"]))
        self.max_token_bytes = max_token_bytes(library, description)
        self.special_ids = frozenset(
            token for token, added in library.get_added_tokens_decoder().items() if added.special
        )
        self.chat_template = chat_template
        named = self._named_token("bos_token")
        self.bos_token_id = named if bos_token_id is None else bos_token_id
        named = self._named_token("eos_token")
        self.eos_token_ids = eos_token_ids or (() if named is None else (named,))
        self._check_known("bos_token_id", () if self.bos_token_id is None else (self.bos_token_id,))
        self._check_known("eos_token_id", self.eos_token_ids)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder. Raises CheckpointError naming the file at fault."""
        data = read_bytes(folder / TOKENIZER_FILE, _MAX_TOKENIZER_BYTES)
        settings = read_json_if_present(folder / SETTINGS_FILE)
        chat_template = _chat_template(folder, settings)
        eos_token_ids = _stated_ids(folder, "eos_token_id")
        bos_token_id = next(iter(_stated_ids(folder, "bos_token_id")), None)
        try:
            return cls(
                _parse(data),
                settings,
                chat_template=chat_template,
                eos_token_ids=eos_token_ids,
                bos_token_id=bos_token_id,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written out in it are recognised, as chat templates need.

        `add_special_tokens` adds those the vocabulary puts around every text, such as a first token. Raises ValueError
        for text that is no valid Unicode (a lone surrogate).
        """
        try:
            return self._library.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise ValueError("text holds a lone surrogate, which is no valid Unicode") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The joined bytes of the tokens as text; what is no valid UTF-8 shows as U+FFFD, special tokens do not."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The raw bytes a token stands for: b"" for special tokens and for ids beyond the vocabulary.

        A model's embedding may be padded to more rows than there are tokens, so such ids are no error.
        """
        return self._bytes[id] if 0 <= id < self.vocab_size else b""

    def save(self, folder: Path) -> None:
        """Write the files that `load` and transformers' AutoTokenizer open, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(folder / TOKENIZER_FILE, self._library.to_str(pretty=True).encode())
        settings = {name: value for name, value in self._settings.items() if name != "chat_template"}
        replace_bytes(folder / SETTINGS_FILE, json_bytes(settings))
        if self.chat_template is None:
            (folder / TEMPLATE_FILE).unlink(missing_ok=True)
        else:
            replace_bytes(folder / TEMPLATE_FILE, self.chat_template.encode())

    def _named_token(self, setting: str) -> int | None:
        """The token that a setting names by its text, if there is one."""
        value = self._settings.get(setting)
        if isinstance(value, dict):  # older files describe the token in full
            value = value.get("content")
        if value is None:
            return None
        token = self._library.token_to_id(value) if isinstance(value, str) else None
        if token is None:
            raise CheckpointError(f"{SETTINGS_FILE}: {setting} {value!r} is not in the vocabulary")
        return token

    def _check_known(self, field: str, ids: Iterable[int]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise CheckpointError(f"{field} {token} is not in the vocabulary, which ends at {self.vocab_size - 1}")


def train_char_tokenizer(text: str) -> Tokenizer:
    """One token per character of `text`, by code point. A character that is not in it becomes its UTF-8 bytes.

    The 256 byte tokens cost that many rows of the embedding, and in return every text can be encoded and comes back
    unchanged: nothing is refused and nothing turns into an "unknown" token.
    """
    pieces = [END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set(text))]
    library = tokenizers.Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _trained(library)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, Radford et al. 2019): any text, no unknown tokens.

    `vocab_size` is an upper limit, reached unless `texts` have fewer pairs to merge; below 257 it is a ValueError.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and {END_OF_TEXT} alone are {len(alphabet) + 1}")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    return _trained(library)


def _trained(library: tokenizers.Tokenizer) -> Tokenizer:
    library.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    # The class name that every release of transformers maps to "use tokenizer.json as it is".
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(library, settings)


def _parse(data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except ValueError as error:
        raise CheckpointError(f"{TOKENIZER_FILE}: is no valid tokenizer: {error}") from error


def _vocab_size(library: tokenizers.Tokenizer) -> int:
    """One more than the highest token id. To be asked first: the library takes a minute to write out an id of 2^31."""
    size = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 1 <= size <= LIMITS["vocab_size"]:
        raise CheckpointError(
            f"{TOKENIZER_FILE}: the vocabulary ends at {size - 1}; the limit is {LIMITS['vocab_size'] - 1}"
        )
    return size


def _check_total(model: Mapping[str, object]) -> None:
    """Refuse vocabularies that encode at random, or for which some texts are an error in the middle of a request."""
    if model.get("dropout"):
        raise CheckpointError(f"{TOKENIZER_FILE}: model.dropout makes encoding random")
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    if isinstance(vocabulary, dict) and unknown is not None and unknown not in vocabulary:
        raise CheckpointError(f"{TOKENIZER_FILE}: model.unk_token {unknown!r} is not in the vocabulary")
    if model.get("type") == "Unigram" and model.get("unk_id") is None and not model.get("byte_fallback"):
        raise CheckpointError(f"{TOKENIZER_FILE}: model.unk_id is missing")


def _token_table(library: tokenizers.Tokenizer, read: PieceBytes) -> Sequence[bytes]:
    """The bytes of every token, indexed by id; ids the vocabulary skips have none."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    added = library.get_added_tokens_decoder()
    table = [b""] * (max(vocabulary.values()) + 1)
    for piece, token in vocabulary.items():
        if token not in added or not added[token].special:
            table[token] = read(piece, token in added)
    return table


def _stated_ids(folder: Path, field: str) -> tuple[int, ...]:
    """Token ids that a folder's JSON files state by number, from the first file that does."""
    for name in _TOKEN_ID_FILES:
        path = folder / name
        value = read_json_if_present(path).get(field)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise CheckpointError(f"{path}: {field} is {value!r}; it must be a token id or a list of them")
        return tuple(ids)
    return ()


def _chat_template(folder: Path, settings: Mapping[str, object]) -> str | None:
    path = folder / TEMPLATE_FILE
    if path.exists():
        try:
            return read_bytes(path, _MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: is not UTF-8") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / SETTINGS_FILE}: chat_template is no text")
    return template
