"""Counter-based noise: a pure function of (seed, position, token id), so that a choice never depends on other requests.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in torch integer arithmetic. What
follows it takes only exactly rounded operations, in a written order: any other program that takes the same ones, on any
processor, gets the same bits. `model/native/csrc/noise.h` is such a program.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LANES = 4  # consecutive token ids that share one counter

_MASK = 0xFFFFFFFF
_ROUNDS = 10
# The third word of the counter: 0 for the noise of tokens, another number for every other use of chance.
COIN_STREAM = 1

# Counters are worked off in batches whose temporaries stay in the second-level cache.
_BATCH = 4096
# Of the inverse hyperbolic tangent's series, as far as the doubles can tell: z ** 11 / 23 is less than 2 ** -58.
_ATANH = tuple(1.0 / odd for odd in range(21, 1, -2))

# The noise of a 32-bit uniform lies between -log(33 log 2) and 33 log 2: a logit this far below another cannot win.
REACH = 26.1


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Random 32-bit words, [4, n] int64, for counters [4, n] and keys [2, n] of 32-bit words.

    A round multiplies words 0 and 2 and swaps the halves of the two products into place. Here both products are one
    operation, so words 0 and 2 change places after every round instead. High bits are masked off only before the
    next multiplication; everything between is exclusive or.
    """
    multipliers = torch.tensor([[0xD2511F53], [0xCD9E8D57]], device=counter.device)
    weyl = torch.tensor([[0x9E3779B9], [0xBB67AE85]], device=counter.device)
    key = key.clone()
    factors, others = counter[0::2].clone(), counter[1::2].clone()  # words (0, 2) and (1, 3)
    products, spare = torch.empty_like(factors), torch.empty_like(factors)
    for index in range(_ROUNDS):
        flipped = index % 2 == 1
        torch.mul(factors, multipliers.flip(0) if flipped else multipliers, out=products)
        # In a flipped round the rows stand swapped, and so does what they are combined with.
        torch.bitwise_right_shift(products, 32, out=factors)
        factors[0].bitwise_xor_(others[1])
        factors[1].bitwise_xor_(others[0])
        factors.bitwise_xor_(key if flipped else key.flip(0)).bitwise_and_(_MASK)
        key += weyl
        others, products, spare = products, spare, others
    others.bitwise_and_(_MASK)
    return torch.stack((factors[0], others[0], factors[1], others[1]))


def gumbel_noise(seeds: Tensor, positions: Tensor, counters: Tensor) -> Tensor:
    """Standard Gumbel noise [n, 4] float64 for the token ids 4 * counter .. 4 * counter + 3.

    seeds [n] int64 (the bits of the unsigned 64-bit seed), positions [n], counters [n]. The Philox key is the seed,
    the counter (token id // 4, position, 0, 0), the lane token id % 4. Adding the noise to logits and taking the
    arg-max draws from their softmax (Gumbel 1954; Maddison et al. 2014).
    """
    parts = [torch.split(part, _BATCH) for part in (seeds, positions, counters)]
    return torch.cat([_gumbel_batch(*batch) for batch in zip(*parts, strict=True)])


def uniform_noise(seeds: Sequence[int], positions: Sequence[int], stream: int) -> list[float]:
    """One number strictly between 0 and 1 for each seed and position: the first word of counter (0, position, stream,
    0), apart from the noise of every token."""
    keys = np.array(seeds, dtype=np.uint64).view(np.int64)
    words = torch.zeros(6, len(keys), dtype=torch.int64)
    words[1], words[2] = torch.tensor(positions), stream
    words[4], words[5] = torch.from_numpy(keys & _MASK), torch.from_numpy((keys >> 32) & _MASK)
    uniform: list[float] = philox(words[:4], words[4:])[0].double().add_(0.5).mul_(2.0**-32).tolist()
    return uniform


def logarithm(x: Tensor) -> Tensor:
    """Of positive float64 numbers: log(m * 2 ** e) = e log 2 + 2 atanh((m - 1) / (m + 1)), m around 1.

    A library's own is faster, but no two libraries round alike, and some round the end of a tensor unlike the rest.
    """
    mantissa, exponent = torch.frexp(x)
    is_low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(is_low, mantissa * 2.0, mantissa)
    ratio = (mantissa - 1.0).div_(mantissa.add_(1.0))
    square = ratio * ratio
    series = square * _ATANH[0]
    for coefficient in _ATANH[1:]:
        series.add_(coefficient).mul_(square)
    ratio.add_(ratio)
    series.mul_(ratio).add_(ratio)
    return (exponent.double() - is_low.double()).mul_(math.log(2.0)).add_(series)


def _gumbel_batch(seeds: Tensor, positions: Tensor, counters: Tensor) -> Tensor:
    words = torch.zeros(6, len(seeds), dtype=torch.int64, device=seeds.device)
    words[0], words[1] = counters, positions
    words[4], words[5] = seeds & _MASK, (seeds >> 32) & _MASK
    uniform = philox(words[:4], words[4:]).double().add_(0.5).mul_(2.0**-32)  # never 0 or 1
    return logarithm(logarithm(uniform).neg_()).neg_().T
