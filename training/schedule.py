"""The learning rate as a factor of its peak, over the progress of a run from 0 to 1. A pure function."""

import math

from training.config import ScheduleOptions


def rate_factor(options: ScheduleOptions, progress: float) -> float:
    """Factor in [0, 1]: linear warm-up from 0 to 1, then the decay to `final_fraction` at progress 1.

    The cosine is that of Loshchilov and Hutter 2017; linear decay to zero follows Defazio et al. 2023.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < options.warmup_fraction:
        return progress / options.warmup_fraction
    left = (1.0 - progress) / (1.0 - options.warmup_fraction)  # 1 after the warm-up, 0 at the end
    if options.decay == "none":
        left = 1.0
    elif options.decay == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return options.final_fraction + (1.0 - options.final_fraction) * left
