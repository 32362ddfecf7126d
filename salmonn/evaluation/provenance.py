"""The provenance of a result: code, weights, data, settings, versions."""

import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.config.stored import SECRETS

_OF_THE_MODEL = ("torch", "transformers", "peft", "bitsandbytes")
LIBRARIES = (*_OF_THE_MODEL, "sacrebleu", "aac-metrics", "editdistance")
_OF_THE_AUDIO = ("prefix", "path_map", "channel", "expand_cut")
ROOT = Path(__file__).resolve().parents[2]


def build_provenance(config: DictConfig, annotation: str, lora_scaling: float) -> dict[str, Any]:
    """The provenance of one set's result, to be printed and compared; JSON."""
    from salmonn.common import distributed  # with torch; what a commit is, the doctor asks before it loads that

    return {
        "commit": commit(),
        "checkpoint": config.model.ckpt,
        "checkpoint_sha256": file_hash(config.model.ckpt) if config.model.ckpt else "",
        "annotation": annotation,
        "annotation_sha256": file_hash(annotation),
        "lora_scaling": lora_scaling,
        "precision": f"AMP {config.run.amp_dtype}" if config.run.amp else "float32",
        "device": config.run.device,
        "model": {
            key: value for key, value in OmegaConf.to_container(config.model).items() if f"model.{key}" not in SECRETS
        },
        "generate": OmegaConf.to_container(config.generate),
        "datasets": {key: OmegaConf.to_container(config.datasets)[key] for key in _OF_THE_AUDIO},
        "seed": config.run.seed,
        "batch_size": config.run.batch_size_eval,
        "processes": distributed.world_size(),
        "versions": {name: version(name) for name in LIBRARIES},
        "weights": {key: weights_stamp(config.model[key]) for key in ("llama_path", "whisper_path", "beats_path")},
    }


# Of the provenance: what does not decide whether an answer is asked again. A commit rarely changes answers, and asking
# thousands of them again may take days: earlier ones are told of instead. In float32 an answer is the same in
# any batch; else the batch's size is of the last digits.
_NOT_OF_THE_ANSWERS = ("processes", "commit", "batch_size")


def fingerprint(provenance: dict[str, Any], prompts: list[str]) -> str:
    """Short hash of what the answers to these prompts depend on."""
    kept = {key: value for key, value in provenance.items() if key not in _NOT_OF_THE_ANSWERS}
    kept["versions"] = {name: provenance["versions"][name] for name in _OF_THE_MODEL}
    return hashlib.sha256(json.dumps([kept, prompts], sort_keys=True).encode()).hexdigest()[:12]


def earlier_commits(provenance: dict[str, Any], commits: set[str]) -> dict[str, list[str]]:
    """What the provenance has to add where some answers are of other commits than its own."""
    earlier = sorted(commits - {provenance["commit"]})
    return {"answers_of_earlier_commits": earlier} if earlier else {}


def weights_stamp(path: str) -> str:
    """Short hash of names, sizes and times of a folder's files, or of one file; "" for what is not on this disk."""
    root = Path(path)
    files = sorted(root.rglob("*")) if root.is_dir() else [root] if root.is_file() else []
    if not path or not files:
        return ""
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def file_hash(path: str) -> str:
    """SHA-256 of a file's content; read once as long as the file stays as it is."""
    status = Path(path).stat()
    return _hash_of_version(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_of_version(path: str, _size: int, _modified: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    """The commit of the code that runs, with + where it was changed since; "" outside a repository."""
    try:
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
