"""/dev/shm, of which containers have little: what needs it, and what is there."""

from pathlib import Path

from salmonn.common.files import GB, free_bytes

FOLDER = Path("/dev/shm")
_NCCL = 1.0  # GB; NVIDIA's advice for containers, with which NCCL sets up on machines of many GPUs


def shared_memory(n_gpus: int) -> tuple[str, str]:
    """What there is, and what is wrong with it where the processes of this many GPUs train on a machine ("": nothing).

    The loader needs none.
    """
    if not FOLDER.is_dir():
        return f"there is no {FOLDER}", ""
    free = free_bytes(FOLDER) / GB
    there = f"{free:.2f} GB free in {FOLDER}"
    if n_gpus < 2 or free >= _NCCL:
        return there, ""
    return there, (
        f"{there}, but NCCL, by which the {n_gpus} GPUs of a machine exchange gradients, may take {_NCCL:g} GB of it "
        f"and fail or stand still without: start a container with --shm-size=1g --ulimit memlock=-1 (or set "
        f"NCCL_SHM_DISABLE=1, which is slower)"
    )
