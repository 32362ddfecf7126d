"""One process or many: what the environment of torchrun or Slurm says, and the few collectives we use."""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from salmonn.common.device import device_of

# What the libraries say when another rank does not answer: gloo before and after it closed the connection, NCCL.
_LOST = ("gloo/transport", "Application timeout caused pair closure", "ncclRemoteError")

_A_PERSON = datetime.timedelta(days=365)  # how long one may think before the next question

_control: dist.ProcessGroup | None = None  # of the CPUs: what ranks agree on must not wait for GPUs
_store: dist.Store | None = None  # how ranks find each other, also when a group is broken
_timeout = datetime.timedelta()  # how long ranks wait for each other


def init(config: DictConfig) -> torch.device:
    """Join torchrun's process group if there is one; returns this rank's device. Raises UserError as `device_of`."""
    run, device = config.run, device_of(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if run.use_distributed and "RANK" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        _join(backend, run.dist_url, datetime.timedelta(minutes=run.timeout_minutes))
    return device


def _join(backend: str, dist_url: str, timeout: datetime.timedelta) -> None:
    """Join the process groups, in which no rank waits longer than `timeout` for another.

    With gloo a wait that is too long raises, with NCCL its watchdog ends the process.
    """
    global _control, _store, _timeout
    _timeout = timeout
    _store, rank, world_size = _meeting_point(dist_url, timeout)
    dist.init_process_group(backend, store=_store, rank=rank, world_size=world_size, timeout=timeout)
    _control = dist.new_group(backend="gloo", timeout=timeout)


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """Inside, ranks wait for what they agree on as long as a person takes; all of them enter and leave it together."""
    global _control
    usual = _control
    if dist.is_initialized():
        _control = dist.new_group(backend="gloo", timeout=_A_PERSON)
    try:
        yield
    finally:
        _control = usual


def _meeting_point(dist_url: str, timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """The store that all ranks share, this rank and the number of ranks.

    torchrun's agent lends its store to the ranks, the same one after a restart: what the ranks
    before left in it must not be read, or the new ones wait for processes that are gone.
    """
    environment = os.environ
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    store, rank, world_size = next(rendezvous(dist_url, rank, world_size, timeout=timeout))
    restarts = environment.get("TORCHELASTIC_RESTART_COUNT")
    if restarts and environment.get("GROUP_WORLD_SIZE") == "1":  # on several machines the agents count restarts apart
        store = dist.PrefixStore(f"restart {restarts}", store)
    return store, rank, world_size


def wrap(
    model: nn.Module, device: torch.device, find_unused_parameters: bool = False, is_sharded: bool = False
) -> nn.Module:
    """The model with gradients averaged over all ranks, as `in_ddp`; the model itself when there is one only."""
    return model if world_size() == 1 else in_ddp(model, device, find_unused_parameters, is_sharded)


def in_ddp(
    model: nn.Module, device: torch.device, find_unused_parameters: bool = False, is_sharded: bool = False
) -> DistributedDataParallel:
    """The model with gradients averaged over the group, be it of one rank.

    `is_sharded`: some of its frozen parameters are shares, of which no rank has what the others have.
    """
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused_parameters,
        init_sync=not is_sharded,
    )


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def n_together() -> int:
    """Processes with fast links between them: those of a machine, or all where a machine has one.

    Ranks are numbered machine by machine, equally many on each; where a launcher does otherwise, it is all, too.
    """
    here = local_world_size()
    places = gather_objects((here, int(os.environ.get("LOCAL_RANK", 0))))
    is_regular = all(place == (here, number % here) for number, place in enumerate(places))
    return here if is_regular and here > 1 else world_size()


def is_local_main() -> bool:
    """Whether this is the first process of its machine; known before the processes join."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0


def sum_numbers(*values: float) -> list[float]:
    """Sums over all ranks of numbers that the CPU knows."""
    sums = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums, group=_control)
    return sums.tolist()


def any_rank(*flags: bool) -> list[bool]:
    """Which of the flags are set on some rank."""
    if not dist.is_initialized():
        return list(flags)
    values = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(values, dist.ReduceOp.MAX, group=_control)
    return values.bool().tolist()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=_control)
    return gathered


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, group=_control)
    return values[0]


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_contact(error: Exception, seconds: float) -> str:
    """Which ranks are gone, if `error` only says that this one heard no more of another; else "".

    Those that do not answer a roll call within `seconds` have ended or hang.
    """
    reason = str(error)
    if _store is None or not any(words in reason for words in _LOST):
        return ""
    absent = sorted(set(range(int(os.environ["WORLD_SIZE"]))) - _roll_call(_store, seconds))
    who = f"no contact any more with rank {', '.join(map(str, absent))}" if absent else "a rank was too slow"
    return (
        f"rank {os.environ['RANK']}: {who}. It has ended, or did not answer within run.timeout_minutes = "
        f"{_timeout / datetime.timedelta(minutes=1):g}. ({reason.splitlines()[0]})"
    )


def _roll_call(store: dist.Store, seconds: float) -> set[int]:
    """The ranks that answer: those that live and have lost contact, too. Waits up to `seconds` for all of them."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here, deadline = {rank}, time.monotonic() + seconds

    def call() -> None:
        with contextlib.suppress(RuntimeError):  # the store may have gone with the rank that kept it
            store.set(f"rank {rank} is here", "")
            while len(here) < world_size and time.monotonic() < deadline:
                here.update(r for r in range(world_size) if store.check([f"rank {r} is here"]))
                time.sleep(0.1)

    caller = threading.Thread(target=call, daemon=True)  # a store whose keeper hangs never answers
    caller.start()
    caller.join(seconds)
    return here
