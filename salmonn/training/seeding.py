"""Random numbers of a run."""

import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all randomness of a step (dropout, prompts) depend on these three alone: nothing to save and restore."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
