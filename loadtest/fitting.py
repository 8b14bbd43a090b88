"""Default lengths that a model's context holds. Lengths that were asked for stay as they are. Pure."""

from dataclasses import replace

from loadtest.config import DEFAULT_OUTPUT_LENGTH, DEFAULT_PROMPT_LENGTH, RequestOptions
from loadtest.lengths import MAX_LENGTH, Length, parse_length
from loadtest.workload import VOCABULARY

# What a tokenizer of bytes or characters makes of the longest word and the space after it: no tokenizer makes more.
MAX_WORD_TOKENS = max(map(len, VOCABULARY.split())) + 1
# What a chat template and special tokens may put around a prompt.
RESERVED_TOKENS = 32


def fit(options: RequestOptions, context_length: int | None) -> RequestOptions:
    """`options` with both lengths given. Prompt, answer and shared prefix fit into `context_length` tokens as far as
    defaults can see to that; None, where a server does not tell, takes the defaults whole."""
    if context_length is None:
        return _given(options, DEFAULT_PROMPT_LENGTH, DEFAULT_OUTPUT_LENGTH)
    answer = min(DEFAULT_OUTPUT_LENGTH, context_length // 4)
    if options.output_length is not None:
        answer = _longest(parse_length("output_length", options.output_length))
    tokens_per_word = 1 if options.prompt_token_ids else MAX_WORD_TOKENS
    room = (context_length - answer - RESERVED_TOKENS) // tokens_per_word - options.shared_prefix
    return _given(options, min(DEFAULT_PROMPT_LENGTH, room), answer)


def told(before: RequestOptions, after: RequestOptions) -> str | None:
    """One line for the reader when default lengths were shortened."""
    is_prompt_shorter = before.prompt_length is None and after.prompt_length != f"fixed:{DEFAULT_PROMPT_LENGTH}"
    is_output_shorter = before.output_length is None and after.output_length != f"fixed:{DEFAULT_OUTPUT_LENGTH}"
    if not (is_prompt_shorter and before.prompts is None) and not is_output_shorter:
        return None
    chosen = f"--prompt-length {after.prompt_length} --output-length {after.output_length}"
    return f"the default lengths do not fit the model's context; taking {chosen}"


def _given(options: RequestOptions, prompt: int, output: int) -> RequestOptions:
    return replace(
        options,
        prompt_length=options.prompt_length or f"fixed:{max(1, prompt)}",
        output_length=options.output_length or f"fixed:{max(1, output)}",
    )


def _longest(length: Length) -> int:
    """The most that is drawn; of a distribution without an end, its middle."""
    match length.kind:
        case "fixed":
            return int(length.first)
        case "uniform":
            return int(length.second)
        case _:
            return int(length.first) if length.maximum == MAX_LENGTH else length.maximum
