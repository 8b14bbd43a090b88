"""Parameters that are not ours: the harmless ones that are dropped, and the known ones that are refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.api.json_guard import shown
from server.errors import BadRequest

# They tell OpenAI who asks or how to bill it; no answer depends on them.
HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


@dataclass(frozen=True)
class Unsupported:
    """A parameter that would change the answer. The values in `neutral` (and null) ask for nothing and are dropped."""

    neutral: tuple[object, ...]
    supported: str


COMPLETION_UNSUPPORTED: Mapping[str, Unsupported] = {
    "best_of": Unsupported((1,), "only 1 (every choice is returned; use n)"),
    "suffix": Unsupported(("",), "only completion at the end of the prompt"),
    "skip_special_tokens": Unsupported((True,), "only true"),
    "spaces_between_special_tokens": Unsupported((True, False), "no spaces, as special tokens are not shown"),
}

CHAT_UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported((), "only text"),
    "best_of": COMPLETION_UNSUPPORTED["best_of"],
    "echo": Unsupported((False,), "only false; echo belongs to /v1/completions"),
    "function_call": Unsupported(("none",), 'only "none", as there are no functions'),
    "functions": Unsupported(([],), "no functions"),
    "modalities": Unsupported((["text"],), 'only ["text"]'),
    "parallel_tool_calls": Unsupported((True, False), "no tools"),
    "prediction": Unsupported((), "no predicted output"),
    "reasoning_effort": Unsupported(("none",), 'only "none"'),
    "skip_special_tokens": COMPLETION_UNSUPPORTED["skip_special_tokens"],
    "spaces_between_special_tokens": COMPLETION_UNSUPPORTED["spaces_between_special_tokens"],
    "tool_choice": Unsupported(("none",), 'only "none", as there are no tools'),
    "tools": Unsupported(([],), "no tools"),
    "verbosity": Unsupported(("medium",), 'only "medium"'),
    "web_search_options": Unsupported((), "no web search"),
}

# What clients send back when they append the message of an answer to the conversation.
MESSAGE_UNSUPPORTED: Mapping[str, Unsupported] = {
    "annotations": Unsupported(([],), "only text"),
    "audio": Unsupported((), "only text"),
    "function_call": Unsupported((), "no functions"),
    "reasoning": Unsupported(("",), "no reasoning"),
    "reasoning_content": Unsupported(("",), "no reasoning"),
    "refusal": Unsupported(("",), "no refusals"),
    "tool_calls": Unsupported(([],), "no tools"),
}


def keep_supported(
    body: Mapping[str, object], known: frozenset[str], unsupported: Mapping[str, Unsupported], where: str = ""
) -> dict[str, object]:
    """`body` without harmless and neutral entries. Raises BadRequest at the first key that is neither they nor known.

    `where` prefixes parameter names, as "messages[0]." does.
    """
    kept: dict[str, object] = {}
    for name, value in body.items():
        if name in known:
            kept[name] = value
        elif name in unsupported:
            _check_neutral(where + name, value, unsupported[name])
        elif where or name not in HARMLESS:
            parameter = where + name if len(name) <= 80 else where + name[:80] + "..."
            raise BadRequest(f"Unknown parameter: {shown(parameter)}.", parameter, "unknown_parameter")
    return kept


def _check_neutral(parameter: str, value: object, unsupported: Unsupported) -> None:
    if value is None or any(type(value) is type(neutral) and value == neutral for neutral in unsupported.neutral):
        return
    raise BadRequest(
        f"{parameter} is {shown(value)}, which is not supported: this server supports {unsupported.supported}.",
        parameter,
        "unsupported_value",
    )
