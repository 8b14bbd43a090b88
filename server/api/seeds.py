"""Which seed each choice of a request gets: a pure function of the request's seed."""

_MASK = 2**64 - 1
_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd: SplitMix64's step


def derive_seed(seed: int, index: int) -> int:
    """The seed of choice `index` (counted over all prompts of a request), in 0..2**64-1.

    Choice 0 has the request's own seed, so a request with one choice and that seed repeats it; every other choice has
    SplitMix64's finalizer of seed + index * golden ratio, and is repeated by a request with the derived seed.
    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    if index == 0:
        return seed
    mixed = (seed + index * _GOLDEN_RATIO) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
