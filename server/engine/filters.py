"""The stages between a model's logits and the choice of a token, as pure functions of rows. Knows no sequence.

Every stage works on each row alone and keeps ties together, so a row's result is a function of that row: besides exact
arithmetic only sort, top-k, maximum, cumulative sum and (log-)softmax along the row, which compute a row the same way
whatever the others are. A hidden token's logit is minus infinity; every stage leaves at least one that is not.

Logits are [rows, vocab] float32 and parameters [rows, 1] throughout. Probabilities are float64.
"""

import math

import torch
from torch import Tensor

HIDDEN = float("-inf")

# The largest weight is 2 ** 44: a vocabulary of 500,000 adds up to less than 2 ** 63.
_WEIGHT_BITS = 44
# What is as unlikely as this weighs nothing.
_LEAST_EXPONENT = -40.0
_EXPONENTIAL = tuple(1.0 / math.factorial(k) for k in range(12, 0, -1))


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones (Keskar et al. 2019).

    seen (prompt and output) has the shape of the logits.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def penalise_frequency(logits: Tensor, counts: Tensor, penalty: Tensor) -> Tensor:
    """OpenAI's frequency penalty: subtract it once per occurrence in the output."""
    return logits - penalty * counts


def penalise_presence(logits: Tensor, counts: Tensor, penalty: Tensor) -> Tensor:
    """OpenAI's presence penalty: subtract it from what occurs in the output."""
    return logits - penalty * (counts > 0)


def keep_most_likely(logits: Tensor) -> Tensor:
    """Keep the arg-max alone, the lowest id of those that tie."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, HIDDEN).scatter_(-1, best, logits.gather(-1, best))


def dynamic_temperature(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    """A temperature [rows, 1] float64 for each row: low + (high - low) * (entropy / its maximum) ** exponent.

    The maximum is the logarithm of the number of candidates; one candidate has the temperature `low`. As llama.cpp's
    `llama_sampler_init_temp_ext` (kalomaze 2023, https://github.com/ggml-org/llama.cpp/pull/4972).
    """
    candidates = (logits > HIDDEN).sum(-1, keepdim=True)
    shares = [
        (max(0.0, entropy) / math.log(count)) ** power if count > 1 else 0.0
        for entropy, count, power in zip(
            _entropy(logits)[:, 0].tolist(), candidates[:, 0].tolist(), exponent[:, 0].tolist(), strict=True
        )
    ]
    return low + (high - low) * low.new_tensor(shares)[:, None]


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k largest logits of each row and whatever ties with the k-th; k [rows] (Fan et al. 2018)."""
    k = k.clamp_max(logits.shape[-1])
    largest = logits.topk(int(k.max()), dim=-1).values
    threshold = largest.gather(-1, k[:, None] - 1)
    return logits.masked_fill(logits < threshold, HIDDEN)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p, and ties with its last (nucleus
    sampling, Holtzman et al. 2020)."""
    ordered = logits.sort(dim=-1, descending=True).values
    cumulative = integer_weights(ordered).cumsum(-1)
    target = p.double() * cumulative[:, -1:].double()
    # The first index where the sum reaches p; the last one if rounding keeps the sum below it.
    last = (cumulative.double() < target).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return logits.masked_fill(logits < ordered.gather(-1, last), HIDDEN)


def integer_weights(logits: Tensor) -> Tensor:
    """exp(logit - maximum) in units of 2 ** -44 [rows, vocab] int64, rounded down.

    The sum of integers does not depend on their order: who adds them up without sorting gets the same. For that the
    exponential is written out, too: exp(n log 2 + r) = 2 ** n * sum of r ** k / k!, |r| at most log(2) / 2.
    """
    exponents = (logits.double() - logits.amax(-1, keepdim=True).double()).clamp_min_(_LEAST_EXPONENT)
    doublings = (exponents * (1.0 / math.log(2.0))).round_()
    rest = exponents.sub_(doublings * math.log(2.0))
    series = rest * _EXPONENTIAL[0]
    for coefficient in _EXPONENTIAL[1:]:
        series.add_(coefficient).mul_(rest)
    powers = (doublings.long() + (_WEIGHT_BITS + 1023) << 52).view(torch.float64)
    return series.add_(1.0).mul_(powers).long()


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + _log(p).float(), HIDDEN)


def keep_typical(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose surprise is nearest the entropy and whose probability reaches p, and ties
    with its last (locally typical sampling, Meister et al. 2023). The most likely token may be none of them."""
    logprobs = logits.double().log_softmax(-1)
    distance = (logprobs + _entropy(logits)).abs()  # |surprise - entropy|, infinite where hidden
    ordered, order = distance.sort(dim=-1, stable=True)
    cumulative = logits.double().softmax(-1).gather(-1, order).cumsum(-1)
    last = (cumulative < p).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return logits.masked_fill(distance > ordered.gather(-1, last), HIDDEN)


def keep_epsilon(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Keep tokens with a probability of at least epsilon, or the most likely (Hewitt et al. 2022, section 4)."""
    return _keep_logprob(logits, _log(epsilon))


def keep_eta(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Keep tokens with a probability of at least min(epsilon, sqrt(epsilon) * exp(-entropy)), or the most likely
    (eta sampling, Hewitt et al. 2022, algorithm 1)."""
    log = _log(epsilon)
    return _keep_logprob(logits, torch.minimum(log, log / 2 - _entropy(logits)))


def keep_top_a(logits: Tensor, a: Tensor) -> Tensor:
    """Keep tokens with a probability of at least a times the square of the largest one (BlinkDL 2021,
    https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method)."""
    return _keep_logprob(logits, _log(a) + 2 * logits.double().log_softmax(-1).amax(-1, keepdim=True))


def keep_top_n_sigma(logits: Tensor, n: Tensor) -> Tensor:
    """Keep tokens whose logit is within n standard deviations of the largest (Tang et al. 2024).

    The deviation is that of the candidates' logits, as a population's.
    """
    seen = logits > HIDDEN
    count = seen.sum(-1, keepdim=True)
    finite = logits.double().masked_fill(~seen, 0.0)
    mean = _total(finite) / count
    variance = _total(((finite - mean) ** 2).masked_fill(~seen, 0.0)) / count
    return logits.masked_fill(logits.double() < logits.amax(-1, keepdim=True).double() - n * variance.sqrt(), HIDDEN)


def exclude_top_choices(logits: Tensor, threshold: Tensor) -> Tensor:
    """Of the tokens with a probability of at least the threshold keep the least likely, and ties with it (XTC, p-e-w
    2024, https://github.com/oobabooga/text-generation-webui/pull/6335). Whether to exclude is decided elsewhere."""
    logprobs = logits.double().log_softmax(-1)
    choices = (logprobs >= _log(threshold)) & (logits > HIDDEN)
    least = logits.masked_fill(~choices, math.inf).amin(-1, keepdim=True)
    return logits.masked_fill(choices & (logits > least), HIDDEN)


def _keep_logprob(logits: Tensor, threshold: Tensor) -> Tensor:
    logprobs = logits.double().log_softmax(-1)
    return logits.masked_fill(logprobs < torch.minimum(threshold, logprobs.amax(-1, keepdim=True)), HIDDEN)


def _entropy(logits: Tensor) -> Tensor:
    """In nats, [rows, 1] float64."""
    logits = logits.double()
    probabilities = logits.softmax(-1)
    return _total((probabilities * logits.log_softmax(-1)).masked_fill(probabilities == 0, 0.0)).neg()


def _total(values: Tensor) -> Tensor:
    """Sums of rows, [rows, 1]. `sum` may split a single row among threads, and round another way than for several."""
    return values.cumsum(-1)[:, -1:]


def _log(column: Tensor) -> Tensor:
    """Logarithms of a parameter column, one by one: a vectorised logarithm may differ from the one that finishes an
    uneven tail, and then a row's threshold would depend on where in the batch it stands."""
    values = [math.log(value) if value > 0 else -math.inf for value in column.flatten().tolist()]
    return column.new_tensor(values, dtype=torch.float64)[:, None]
