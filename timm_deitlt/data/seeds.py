"""Seeds that are derived from a position in a run."""
import random

import numpy as np
import torch

# Last number of (seed, epoch, number, 0, ...) if this is not the seed of an image
STREAM, IMAGE_SIZE, BATCH = 1, 2, 3


def derive_seed(*path: int) -> int:
    """32-bit seed of a position in the run, such as (seed, epoch, micro-batch, position)."""
    # to numpy (1, 2) and (1, 2, 0) are the same, so the length is added
    entropy: tuple[int, ...] | np.ndarray = (len(path), *path)
    if max(entropy) < 2 ** 32:
        entropy = np.array(entropy, np.uint32)  # this halves the time
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(*path: int) -> None:
    """Seed torch (all devices), numpy and random from a position in the run."""
    torch.manual_seed(seed_host(*path))


def seed_host(*path: int) -> int:
    """Seed the generators that augmentation uses (torch on the CPU, numpy and random), and return the seed."""
    # torch.manual_seed is slow (a tenth of the time of a small image), because it records a stack trace for each type
    # of device that it cannot seed yet
    seed = derive_seed(*path)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    return seed
