"""What a row may not choose, and the logit bias: the constraints that come before every stage."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.filters import HIDDEN
from server.engine.sampling.repeats import repeated_ngrams
from server.engine.sampling.row import Row

Hidden = NDArray[np.bool_]


def is_constrained(row: Row) -> bool:
    """Whether any constraint is in force."""
    return row.params.is_constrained or bool(row.withheld) or row.mask is not None


def constrain(logits: Tensor, row: Row) -> None:
    """Hide what `row` may not choose and add its bias; logits [vocab], changed in place.

    A row must keep a candidate. So in the order mask, lists (allowed, banned, withheld), bad words, n-grams, each is
    passed over where it would hide all that is left.
    """
    hidden = hidden_tokens(row, logits.shape[-1])
    if hidden.any():
        logits.masked_fill_(torch.from_numpy(hidden).to(logits.device), HIDDEN)
    if row.params.logit_bias:
        tokens, biases = zip(*row.params.logit_bias, strict=True)
        logits.index_add_(0, torch.tensor(tokens, device=logits.device), logits.new_tensor(biases))


def hidden_tokens(row: Row, vocab_size: int) -> Hidden:
    """Which tokens the row may not choose [vocab]."""
    hidden = np.zeros(vocab_size, dtype=np.bool_) if row.mask is None else ~allowed_by(row.mask, vocab_size)
    hidden = _unless_all(hidden, _listed(row, vocab_size))
    state = row.state
    if row.params.bad_words:
        assert state is not None
        completed = _marked(state.words.completed_by(state.tokens), vocab_size)
        hidden = _unless_all(hidden, completed | _marked(state.words.alone, vocab_size))
    if row.params.no_repeat_ngram_size:
        assert state is not None
        repeated = repeated_ngrams(state.tokens, state.matches, row.params.no_repeat_ngram_size)
        hidden = _unless_all(hidden, _marked(repeated, vocab_size))
    return hidden


def allowed_by(mask: NDArray[np.int32], vocab_size: int) -> Hidden:
    """A grammar's words as one flag per token [vocab]; tokens beyond the last word are not allowed."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[:vocab_size]
    return np.pad(bits, (0, vocab_size - len(bits))).astype(np.bool_)


def _listed(row: Row, vocab_size: int) -> Hidden:
    hidden = _marked([*row.params.banned_tokens, *row.withheld], vocab_size)
    if row.params.allowed_tokens is not None:
        hidden |= ~_marked(row.params.allowed_tokens, vocab_size)
    return hidden


def _marked(tokens: Sequence[int] | NDArray[np.integer], vocab_size: int) -> Hidden:
    marked = np.zeros(vocab_size, dtype=np.bool_)
    marked[np.asarray(tokens, dtype=np.int64)] = True
    return marked


def _unless_all(hidden: Hidden, more: Hidden) -> Hidden:
    together = hidden | more
    return hidden if together.all() else together
