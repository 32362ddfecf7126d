"""A trained model on the Hugging Face Hub: fetched by its name, published as a folder with its card.

The hub knows who is asking by `hf auth login` or HF_TOKEN; no token passes through here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from omegaconf import DictConfig
from torch import Tensor

from salmonn.common.errors import UserError, reason
from salmonn.common.files import write_text
from salmonn.model import pretrained
from salmonn.model.card import model_card
from salmonn.model.lineage import lineage_of
from salmonn.model.pretrained import CONFIG, WEIGHTS

CARD = "README.md"  # where the hub looks for it
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_hub_name(name: str | Path) -> bool:
    """Whether USER/NAME is to be asked for at the hub: it is no path that leads to something here."""
    return bool(_NAME.fullmatch(str(name))) and not Path(name).exists() and not Path(name).parent.is_dir()


class UnreachableError(UserError):
    """There is no way to the hub."""


def fetched(
    name: str,
    revision: str | None = None,
    folder: Path | None = None,
    patterns: Sequence[str] = (WEIGHTS, CONFIG, CARD),
) -> Path:
    """The folder of a model on the hub: in the hub's own cache, where what is there is not loaded again, or `folder`.

    Raises UnreachableError where there is no way to the hub, and UserError where it has no such model, or no room for
    it is here.
    """
    try:
        found = snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=list(patterns))
    except Exception as error:  # of any kind, as those of several libraries below the hub's come through
        kind = UnreachableError if _is_unreachable(error) else UserError
        raise kind(f"{name} is no folder here, and {_why_not(name, revision, error)}") from error
    return Path(found)


def _is_unreachable(error: Exception) -> bool:
    """Whether it tells neither what the hub has answered nor what is wrong here."""
    is_transport = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
    return is_transport or isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)


def require_name(name: str) -> None:
    """Raises UserError for what no model on the hub can be called."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: a model on the hub is called USER/NAME, in letters, digits and . _ -")


def write_folder(
    folder: str | Path,
    name: str,
    parameters: Mapping[str, Tensor],
    model: DictConfig,
    training: Mapping[str, Any],
    licence: str = "",
    scores: str = "",
) -> None:
    """Write what is published as `name`: weights, configuration and card; paths of this machine stay here."""
    section = pretrained.without_places(model)
    pretrained.save(folder, parameters, section, training)
    write_text(Path(folder) / CARD, model_card(name, section, lineage_of(training), licence, scores))


def publish(folder: str | Path, name: str, private: bool = True) -> str:
    """Put a folder's weights, configuration and card on the hub, in one commit; returns the model's address.

    Raises UserError where the hub does not take them.
    """
    require_name(name)
    api, message = HfApi(), "Weights, configuration and card"
    paths = [Path(folder) / file for file in (WEIGHTS, CONFIG, CARD)]
    files = [CommitOperationAdd(path.name, path) for path in paths if path.exists()]
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(name, files, commit_message=message)
    except Exception as error:  # as above
        raise UserError(f"{name} was not published: {_why_not(name, None, error)}") from error
    return f"{constants.ENDPOINT}/{name}"


def _why_not(name: str, revision: str | None, error: Exception) -> str:
    """What stands between this machine and a model on the hub."""
    login = "to be known there: `hf auth login`, or HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"on the hub its terms have to be accepted first ({constants.ENDPOINT}/{name}; {login})"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub ({constants.ENDPOINT}) has no such model, or not for you ({login})"
    if isinstance(error, RevisionNotFoundError):
        return f"on the hub it has no revision {revision!r}"
    if isinstance(error, HFValidationError):
        return f"it is no possible name on the hub ({reason(error)})"
    if constants.HF_HUB_OFFLINE and _is_unreachable(error):
        return f"the hub is not asked, as HF_HUB_OFFLINE is set; its cache here is {constants.HF_HUB_CACHE}"
    if isinstance(error, OSError) and error.errno:  # the disk's; those of the network have another kind, or no number
        return f"this machine's disk says: {error}"
    return f"the hub ({constants.ENDPOINT}) does not give or take it: {reason(error).splitlines()[0]} ({login})"
