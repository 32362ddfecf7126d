"""Ranks that each hold a share of the LLM: loss, gradients and answers are those of one that holds all of it."""

import datetime
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from salmonn.common import distributed
from salmonn.model.activation_memory import set_gradient_checkpointing
from salmonn.model.salmonn import SALMONN
from salmonn.model.sharding import is_sharded, shard_blocks
from util.benchmarks.sizes import build, make_batch, rows_of

CPU, CLIPS = torch.device("cpu"), 4


def build_mini(quantization: str, recompute: bool) -> SALMONN:
    return build("mini", CPU, "float32", quantization, gradient_checkpointing=recompute)


def loss_and_gradients(model: SALMONN, wrapped: torch.nn.Module, samples: dict) -> tuple[float, float, torch.Tensor]:
    """Loss and tokens of a batch, and the gradients of the loss summed over its tokens; no dropout."""
    model.eval()
    set_gradient_checkpointing(model.llama_model, model.config.gradient_checkpointing)
    result = wrapped(samples, verbose=True)
    (result["loss"] * result["total"]).backward()
    model.eval()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return result["loss"].item(), result["total"].item(), gradients


def answer(model: SALMONN, samples: dict, row: int, **settings: int) -> list[int]:
    samples = rows_of(samples, slice(row, row + 1))
    return model.generate(samples, settings, samples["prompts"], return_details=True)[0]["token_ids"]


def held(model: SALMONN) -> int:
    """Bytes of the blocks' frozen weights that are here."""
    frozen = [p for p in model._causal_lm().get_decoder().layers.parameters() if not p.requires_grad]
    return sum(getattr(p, "_local_tensor", p).untyped_storage().nbytes() for p in frozen)


def share(rank: int, ranks: int, machines: int, meeting: str, quantization: str, recompute: bool, told: Any) -> None:
    """What a rank does: its part of the batch, as many answers as its number, and one that all give."""
    together = ranks // machines
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_RANK": str(rank % together), "LOCAL_WORLD_SIZE": str(together)}
    distributed._join("gloo", f"file://{meeting}", datetime.timedelta(minutes=30))
    model = build_mini(quantization, recompute)
    shard_blocks(model._causal_lm(), CPU)
    model.to(CPU)
    samples, before = make_batch(model, CLIPS), held(model)
    mine = rows_of(samples, slice(rank * CLIPS // ranks, (rank + 1) * CLIPS // ranks))
    wrapped = distributed.wrap(model, CPU, is_sharded=is_sharded(model))
    loss, tokens, gradients = loss_and_gradients(model, wrapped, mine)
    with model.lending():
        for row in range(rank):
            answer(model, samples, row, max_new_tokens=2 + row, num_beams=1 + row)
    ids = answer(model, samples, 0, max_new_tokens=6, num_beams=2)
    told.put((rank, before, held(model), loss, tokens, gradients.numpy(), ids))
    del wrapped
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("ranks", "machines", "quantization", "recompute", "most"),
    [
        (2, 1, "none", False, 1e-6),
        (4, 1, "none", True, 1e-6),
        (4, 2, "none", False, 1e-6),
        (2, 2, "none", False, 1e-6),  # of one process each: all share
        (2, 1, "int8", False, 1e-2),  # 8 bits round rows of a batch alike
    ],
)
def test_shares_give_the_loss_the_gradients_and_the_answers_of_the_whole(
    tmp_path: Path, ranks: int, machines: int, quantization: str, recompute: bool, most: float
):
    model = build_mini(quantization, recompute)
    samples = make_batch(model, CLIPS)
    loss, tokens, gradients = loss_and_gradients(model, model, samples)
    ids = answer(model, samples, 0, max_new_tokens=6, num_beams=2)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    arguments = (ranks, machines, str(tmp_path / "meeting"), quantization, recompute, told)
    processes = [context.Process(target=share, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    found = sorted((told.get(timeout=1500) for _ in processes), key=lambda values: values[0])
    for process in processes:
        process.join()
    total = sum(values[4] for values in found)
    assert total == tokens
    assert sum(values[3] * values[4] for values in found) / total == pytest.approx(loss, rel=most)
    for _, before, after, _, _, averaged, said in found:
        assert before == after == pytest.approx(held(model) / max(2, ranks // machines), rel=0.01)
        assert (ranks * torch.from_numpy(averaged) - gradients).norm() < most * gradients.norm()
        assert said == ids


def test_for_a_person_ranks_wait_longer_than_for_each_other(tmp_path: Path, monkeypatch):
    def waits() -> datetime.timedelta:
        return distributed._control._get_backend(CPU).options._timeout

    for name in ("_control", "_store", "_timeout"):  # put back after the test
        monkeypatch.setattr(distributed, name, getattr(distributed, name))
    for key, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(key, value)
    distributed._join("gloo", f"file://{tmp_path}/meeting", datetime.timedelta(minutes=30))
    try:
        with distributed.patiently():
            assert waits() > datetime.timedelta(days=30)
            assert distributed.any_rank(True, False) == [True, False]
        assert waits() == datetime.timedelta(minutes=30)
    finally:
        distributed.shutdown()
