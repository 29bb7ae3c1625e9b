"""Seeds of places in a run."""
import random

import numpy as np
import torch

# What (seed, epoch, number, 0, ...) is the seed of, where it is not that of an image
STREAM, IMAGE_SIZE = 1, 2


def derive_seed(*path: int) -> int:
    """32-bit seed of a place in the run, such as (seed, epoch, micro-batch, position)."""
    # numpy takes (1, 2) and (1, 2, 0) for the same, so the length tells them apart
    entropy: tuple[int, ...] | np.ndarray = (len(path), *path)
    if max(entropy) < 2 ** 32:
        entropy = np.array(entropy, np.uint32)  # for which it needs half the time
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(*path: int) -> None:
    """Seed torch (all devices), numpy and random from a place in the run."""
    torch.manual_seed(seed_host(*path))


def seed_host(*path: int) -> int:
    """Seed what images are augmented with, torch's CPU generator, numpy and random, and return the seed."""
    # torch.manual_seed alone takes a tenth of the time of a small image, as it notes a stack trace for each kind of
    # device that it cannot seed yet
    seed = derive_seed(*path)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    return seed
