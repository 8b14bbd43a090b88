"""Grammars compiled for one model's vocabulary, and the mask of the tokens that may come next. Knows no logits.

Masks are computed by llguidance (Microsoft, 2025): a lexer of regular-expression derivatives below an Earley parser,
walking the trie of the vocabulary. Imported with the first grammar, so that servers without any do not pay.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from server.engine.grammar_probe import GrammarProbe
from server.engine.grammar_spec import CompilerError, Grammar, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher

logger = logging.getLogger(__name__)

# Grammars whose trial is remembered, refused ones included: the choices of one request need one trial.
_MAX_KEPT = 64


class TokenTable(Protocol):
    """The part of a tokenizer the compiler needs."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def token_bytes(self, id: int) -> bytes: ...


class Vocabulary:
    """A model's tokens as llguidance sees them.

    The grammar's end is an id of its own, one past the model's: which of the model's tokens end an answer is decided
    here, and every token without text (special, skipped, padding of the embedding) is never part of one.
    """

    def __init__(self, tokens: TokenTable, vocab_size: int) -> None:
        """`vocab_size` is the model's, in logits; it may exceed the tokenizer's."""
        from llguidance import LLTokenizer, TokenizerWrapper

        self.vocab_size = vocab_size
        self.num_words = -(-vocab_size // 32)
        texts = [tokens.token_bytes(token) for token in range(vocab_size)]
        ending = set(tokens.eos_token_ids)
        # [words] int32: bit t % 32 of word t // 32 stands for token t.
        self.with_text = _packed(vocab_size, [t for t, text in enumerate(texts) if text and t not in ending])
        self.ending = _packed(vocab_size, sorted(ending))
        self.ending_ids = frozenset(ending)
        self.tokenizer: LLTokenizer = LLTokenizer(
            TokenizerWrapper(_Bytes([*texts, b"<end>"], vocab_size)), n_vocab=vocab_size + 1, slices=[]
        )


class Matcher:
    """Where one sequence stands in its grammar: a function of the tokens accepted, nothing else.

    llguidance extends a lexer as masks are computed, counts that work against its limits, and shares the lexer between
    copies. A limit would strike sooner or later depending on which masks were asked for and what was drafted. Hence
    `accept` computes the mask of its position first if nobody has, and looking ahead is done by a scout that shares
    nothing.
    """

    def __init__(self, begin: "Callable[[], LLMatcher]", vocabulary: Vocabulary) -> None:
        self._begin = begin
        self._vocabulary = vocabulary
        self._matcher = begin()
        self._tokens: list[int] = []
        self._has_ended = False
        self._mask: NDArray[np.int32] | None = None
        self._scout: Matcher | None = None

    def mask(self) -> NDArray[np.int32]:
        """Which tokens may come next, [ceil(vocab/32)] int32, bit t % 32 of word t // 32 set for an allowed token t.

        Not to be written to. Has at least one bit set. The model's ending tokens are allowed exactly where the text so
        far is complete. Raises GrammarError when the grammar is beyond a limit here, or nothing can continue it.
        """
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def accept(self, token: int) -> None:
        """Move past an allowed token. Raises GrammarError when the grammar is beyond a limit here."""
        assert allows(self.mask(), token), f"token {token} is not allowed by the grammar"
        if token in self._vocabulary.ending_ids:
            self._has_ended = True
        else:
            self._matcher.consume_token(token)
            self._tokens.append(token)
        self._mask = None
        self._raise_error()

    def is_finished(self) -> bool:
        """Whether nothing but the end may follow. Raises what `mask` does."""
        return not (self.mask() & self._vocabulary.with_text).any()

    def scout(self) -> "Matcher":
        """A matcher at this place to rehearse tokens with. There is one: asking again takes it back from where it went.

        Raises GrammarError, now and whenever it is asked again, once it came to a limit: then this matcher may go on
        all the same, without looking ahead.
        """
        if self._scout is None:
            self._scout = Matcher(self._begin, self._vocabulary)
        scout = self._scout
        pairs = zip(self._tokens, scout._tokens, strict=False)
        num_shared = next((i for i, (own, rehearsed) in enumerate(pairs) if own != rehearsed), len(self._tokens))
        scout._retreat(min(num_shared, len(scout._tokens)))
        for token in self._tokens[len(scout._tokens) :]:
            scout.accept(token)
        return scout

    def _retreat(self, num_tokens: int) -> None:
        """Back to the first `num_tokens` tokens."""
        if num_tokens < len(self._tokens):
            self._matcher.rollback(len(self._tokens) - num_tokens)
            del self._tokens[num_tokens:]
            self._mask = None
        if self._has_ended:
            self._has_ended, self._mask = False, None
        self._raise_error()

    def _compute(self) -> NDArray[np.int32]:
        vocabulary = self._vocabulary
        mask = np.zeros(vocabulary.num_words, dtype=np.int32)
        if not self._has_ended and not self._matcher.is_stopped():
            mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)[: vocabulary.num_words]
            mask = mask & vocabulary.with_text
        self._raise_error()
        if self._has_ended or self._matcher.is_accepting():
            mask = mask | vocabulary.ending
        elif not mask.any():
            raise GrammarError("cannot be satisfied: no token of the vocabulary continues the answer")
        mask.setflags(write=False)
        return mask

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            from server.engine.grammar_source import reason

            raise GrammarError(reason(self._matcher.get_error()))


@dataclass(frozen=True)
class PendingMatcher:
    """A matcher on its way."""

    _matcher: "Future[Matcher]"

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._matcher.done()

    def cancel(self) -> None:
        """Nobody will ask for it: it is not begun if it has not been."""
        self._matcher.cancel()

    def wait(self, seconds: float) -> None:
        """Until `done`, or until the time is up."""
        wait([self._matcher], seconds)

    def result(self) -> Matcher:
        """The matcher at the start of the answer, waiting for it if need be.

        Raises GrammarError, and CompilerError when compiling failed in a way that tells nothing of the grammar.
        """
        failure = self._matcher.exception()
        if failure is None or isinstance(failure, GrammarError | CompilerError):
            return self._matcher.result()
        logger.error("a grammar's compiler failed", exc_info=failure)
        raise CompilerError("The grammar could not be compiled: the compiler failed.") from failure


class GrammarCompiler:
    """Compiles grammars for one model on a thread of its own, after a process of its own has tried each of them.

    llguidance releases the interpreter's lock while it compiles, so the step loop goes on.
    """

    def __init__(self, tokens: TokenTable, vocab_size: int) -> None:
        """`vocab_size` is the model's, in logits."""
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._vocabulary: Vocabulary | None = None
        self._tried: OrderedDict[Grammar, str | GrammarError] = OrderedDict()
        self.probe = GrammarProbe()

    def start(self, grammar: Grammar) -> PendingMatcher:
        """Begin compiling, after what was started before. Every sequence needs a matcher of its own."""
        return PendingMatcher(self._thread.submit(self._compile, grammar))

    def close(self) -> None:
        """Finish what is being compiled, drop what waits, end the process."""
        self._thread.shutdown(cancel_futures=True)
        self.probe.close()

    def _compile(self, grammar: Grammar) -> Matcher:
        source = self._try(grammar)
        from llguidance import LLMatcher

        from server.engine.grammar_source import parser_limits

        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokens, self._vocab_size)
        tokenizer = self._vocabulary.tokenizer
        matcher = Matcher(lambda: LLMatcher(tokenizer, source, log_level=0, limits=parser_limits()), self._vocabulary)
        matcher.mask()  # the first is the dearest, and shows what can never be satisfied
        matcher.scout().mask()  # so that the first draft finds it compiled
        return matcher

    def _try(self, grammar: Grammar) -> str:
        """The grammar in llguidance's notation. Runs on the compiler's thread only."""
        tried = self._tried.get(grammar)
        if tried is None:
            try:
                tried = self.probe.to_source(grammar)
            except GrammarError as error:
                tried = error
            self._tried[grammar] = tried
            if len(self._tried) > _MAX_KEPT:
                self._tried.popitem(last=False)
        if isinstance(tried, GrammarError):
            raise GrammarError(*tried.args)
        return tried


def allows(mask: NDArray[np.int32], token: int) -> bool:
    """Whether a mask has the token's bit set."""
    return bool(mask[token // 32] >> (token % 32) & 1)


def _packed(vocab_size: int, tokens: Sequence[int]) -> NDArray[np.int32]:
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


class _Bytes:
    """What llguidance asks of a tokenizer: the bytes of every token. Nothing here needs text tokenized."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.special_token_ids = [end]

    def __call__(self, text: str) -> list[int]:
        return []
