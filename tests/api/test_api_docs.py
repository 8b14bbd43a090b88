"""docs/api.md tells of everything a client may send and be told."""

import ast
from pathlib import Path

import pytest
from api_apps import make_app
from fake_engine import FakeEngine

from server.api.accepted import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED, HARMLESS, MESSAGE_UNSUPPORTED
from server.api.schemas import CompletionRequest, StreamOptions
from server.api.schemas_chat import ChatRequest, Message
from server.api.tokenization import DetokenizeRequest, TokenizeRequest
from server.api.validation import StrictModel

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def documented(name: str) -> bool:
    return f"`{name}`" in DOCS


@pytest.mark.parametrize(
    "schema", [CompletionRequest, ChatRequest, StreamOptions, Message, TokenizeRequest, DetokenizeRequest]
)
def test_every_field_of_every_schema_is_documented(schema: type[StrictModel]) -> None:
    assert [name for name in schema.model_fields if not documented(name)] == []


@pytest.mark.parametrize("names", [HARMLESS, COMPLETION_UNSUPPORTED, CHAT_UNSUPPORTED, MESSAGE_UNSUPPORTED])
def test_every_harmless_and_every_unsupported_parameter_is_documented(names: frozenset[str]) -> None:
    assert [name for name in names if not documented(name)] == []


def test_every_path_is_documented() -> None:
    paths = make_app(FakeEngine()).openapi()["paths"]
    assert isinstance(paths, dict)
    assert [path for path in paths if path.replace("model_id", "id") not in DOCS] == []


def test_every_error_code_is_documented() -> None:
    codes = {"invalid_api_key", "not_found", "method_not_allowed"}
    code_argument = {"BadRequest": 2, "_server_error": 2, "_try_later": 1}
    for path in (ROOT / "server" / "api").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in code_argument:
                argument = node.args[code_argument[node.func.id]]
                if isinstance(argument, ast.Constant):
                    codes.add(str(argument.value))
    assert len(codes) > 15
    assert [code for code in sorted(codes) if not documented(code)] == []
