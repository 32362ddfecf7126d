"""Short hashes that tell configurations, and other plain values, from others."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.config.loading import defaults, leaves
from salmonn.config.schema import Config
from salmonn.config.stored import without_secrets

# how the names of keys begin that decide on no result, in any run: what is loaded, shown, saved and waited for
BOOKKEEPING = (
    "run.num_workers", "run.log_freq", "run.save_every", "run.keep_checkpoints", "run.timeout_minutes",
    "run.loader_timeout_minutes", "run.wandb_project", "run.encoder_cache",
)  # fmt: skip


def config_digest(config: DictConfig, without: Sequence[str] = ()) -> str:
    """Of what a config sets otherwise than by default, so that a key that comes later changes nothing.

    `without`: how the names of keys begin that do not count.
    """
    plain = dict(leaves(OmegaConf.to_container(defaults(Config))))
    values = leaves(without_secrets(OmegaConf.to_container(config)))
    return digest({key: of for key, of in values if of != plain.get(key) and not key.startswith(tuple(without))})


def digest(value: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
