"""Run as a script: the real server over a fake engine process. `fake_server.py BEHAVIOUR FLAGS...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fake_core import VOCAB_SIZE

from model.tokenizer import train_char_tokenizer
from server import __main__ as composition_root

FIRST_CHARACTER = 257  # its token id: end of text and 256 bytes come before
CODE_POINT = 0x4E00  # its code point


def text_of(tokens: list[int]) -> str:
    """What the tokenizer made below says for tokens that are characters."""
    return "".join(chr(CODE_POINT + token - FIRST_CHARACTER) for token in tokens)


def write_checkpoint(folder: Path) -> Path:
    """A folder the HTTP side accepts: a tokenizer with one character per token, and empty weights nobody reads."""
    folder.mkdir(parents=True)
    characters = "".join(chr(CODE_POINT + n) for n in range(VOCAB_SIZE - FIRST_CHARACTER))
    train_char_tokenizer(characters).save(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


if __name__ == "__main__":
    fake_child = str(Path(__file__).with_name("fake_child.py"))
    composition_root.ENGINE_COMMAND = (sys.executable, fake_child, sys.argv[1])
    sys.exit(composition_root.main(sys.argv[2:]))
