"""The prediction of a step's memory: what autograd keeps is counted, quantised weights are weighed."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from util.benchmark import text_line
from util.benchmarks import memory
from util.benchmarks.memory_parts import (
    Batch,
    Case,
    block_bytes,
    frozen_weights,
    half_copies,
    llm_kept,
    llm_weights,
    qformer_kept,
    target_gradients,
    trained_weights,
)
from util.benchmarks.sizes import build, make_batch

CPU, META = torch.device("cpu"), torch.device("meta")
STAGE1 = Path("configs/stage1.yaml")
GIGA = 1e9


class Kept:
    """A tensor that autograd keeps; gone with the graph that holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept(model, work):
    """What work returns, and the bytes that autograd keeps of it beside the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    packed = WeakSet()

    def pack(tensor):
        packed.add(held := Kept(tensor))
        return held

    with saved_tensors_hooks(pack, lambda held: held.tensor):
        result = work()
    storages = {storage.data_ptr(): storage for storage in (held.tensor.untyped_storage() for held in packed)}
    return result, sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autograd_keeps_what_the_formula_says(dtype, checkpointing):
    model = build("mini", CPU, dtype, gradient_checkpointing=checkpointing).train()
    samples = make_batch(model, 3)
    batch = memory.batch_of(model, samples)
    amp = dtype == "bfloat16"
    case = Case("cpu", 2 if amp else 4, amp=amp, checkpointing=checkpointing)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        (embeds, _), qformer = kept(model, lambda: model.encode_speech(samples["raw_wav"], samples["padding_mask"]))
        _, llm = kept(model, lambda: model.answer_loss(embeds, samples["prompts"], samples["text"]))
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    copies = 2 * adapters if amp else 0
    assert qformer == pytest.approx(qformer_kept(model, case, batch) + half_copies(model, case) - copies, rel=0.02)
    copies *= not checkpointing  # a block's are made again, too
    expected = llm_kept(model, case, batch) + target_gradients(model, case, batch) + copies
    assert llm == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("quantization", ["8bit", "nf4", "int8"])
def test_quantised_weights_take_what_is_stored(quantization):
    case = Case("cpu", 4, quantization)
    stored = 0
    llm = build("mini", CPU, quantization=quantization).llama_model.get_base_model()
    for name, weight in llm.named_parameters():
        if "lora_" not in name:
            constants = getattr(weight, "SCB", None) if quantization == "8bit" else getattr(weight, "quant_state", None)
            constants = getattr(constants, "absmax", constants)
            stored += weight.nbytes + (0 if constants is None else constants.nbytes)
    stored += sum(buffer.nbytes for name, buffer in llm.named_buffers() if name.endswith(".scale"))
    assert llm_weights(build("mini", META).llama_model.get_base_model(), case) == stored


@pytest.mark.parametrize(
    ("size", "quantization", "gigabytes"),
    [("13b", "none", 26.03), ("13b", "8bit", 13.35), ("13b", "nf4", 7.79), ("7b", "8bit", 7.01), ("7b", "nf4", 4.17)],
)
def test_the_published_models_weigh_what_is_known(size, quantization, gigabytes):
    """13.02 and 6.74 thousand million parameters; embeddings and vocabulary of 32,000 stay in two bytes each."""
    model = build(size, META, "bfloat16")
    weights = frozen_weights(model, Case("cuda", 2, quantization))
    assert weights["LLM"] / GIGA == pytest.approx(gigabytes, abs=0.02)
    assert weights["Whisper"] / GIGA == pytest.approx(2 * 0.637, abs=0.01)
    assert weights["BEATs"] / GIGA == pytest.approx(2 * 0.09, abs=0.01)


def test_a_smaller_llm_shares_its_keys_and_its_embeddings():
    """3.21 thousand million parameters, a third as many keys and values as queries."""
    model = memory.model_without_values(load_config("configs/lightweight/llama3.2-3b.yaml").model)
    case = Case("cuda", 2, amp=True)
    assert frozen_weights(model, case)["LLM"] / GIGA == pytest.approx(2 * 3.21, abs=0.01)
    attention = 2 * (2 * 3072 + 2 * 1024) + 4 * 24
    norms, mlp, adapters = 2 * 2 * 3072, 2 * 2 * 8192, 2 * (3 * 3072 + 2 * 8)
    assert block_bytes(model, case) == attention + norms + mlp + adapters


def test_about_33_million_parameters_are_trained():
    assert trained_weights(build("13b", META)) == pytest.approx(4 * 33e6, rel=0.05)


def test_a_clip_more_is_too_big():
    model = memory.model_without_values(load_config(STAGE1).model)
    case, size = Case("cuda", 2, "8bit", amp=True), 24 * GIGA
    most = memory.largest_batch(model, case, 100, size)
    totals = [sum(memory.predicted(model, case, memory.longest(model, n, 100)).values()) for n in (most, most + 1)]
    assert totals[0] <= size < totals[1]
    assert memory.largest_batch(model, replace(case, checkpointing=True), 100, size) > 2 * most
    assert memory.largest_batch(model, case, 100, 10 * GIGA) == 0  # the weights alone are more


def test_accumulated_gradients_count_at_every_point():
    model, batch = build("mini", META), Batch(2, 80_000, 100, 60)
    alone, beside = (memory.phases(model, Case("cuda", 4, gradients_stay=stay), batch) for stay in (False, True))
    assert "gradients" not in alone["loss"]
    assert all(parts["gradients"] == trained_weights(model) for parts in beside.values())


def arguments(**more):
    settings = {"cfg_path": None, "options": [], "size": "mini", "device": "cpu", "dtype": "float32", "quant": "none"}
    return Namespace(**settings | {"batch": 2, "gpu_gb": 32.0, "answer_tokens": None} | more)


def test_the_table_of_a_config_is_labelled_as_prediction():
    rows = list(memory.bench_memory(arguments(cfg_path=STAGE1)))
    assert "PREDICTED" in rows[0]["what"]
    assert not any("measured" in row for row in rows)
    largest = [row["value"] for row in rows if "largest" in row["what"]]
    assert largest[1] > largest[0] > 0  # without checkpointing, with
    for row in rows:
        if "gb" in row:
            assert row["gb"]["all"] == pytest.approx(sum(row["gb"].values()) - row["gb"]["all"])
            assert ("fits" in row["what"]) == (row["gb"]["all"] <= 32)
    assert json.loads(json.dumps(rows)) == rows
    assert all(text_line(row).startswith(row["what"]) for row in rows)


def test_a_size_that_a_cpu_trains_is_measured_there(monkeypatch):
    monkeypatch.setattr(memory, "in_own_process", lambda *_: 50_000_000)  # which takes long
    rows = [row for row in memory.bench_memory(arguments()) if "measured" in row]
    assert [row["measured"] for row in rows] == [0.05, 0.05]
    assert rows[0]["predicted"] > rows[1]["predicted"] > 0
    assert all(row["deviation"] == pytest.approx(row["predicted"] / row["measured"] - 1) for row in rows)


def test_a_model_that_is_neither_here_nor_known_is_named():
    section = load_config(STAGE1, ["model.llama_path=weights/some-llm"]).model
    with pytest.raises(UserError, match="llama_path = weights/some-llm"):
        memory.model_without_values(section)


def test_blocks_of_another_kind_are_refused():
    model = build("mini", META)
    del model.llama_model.get_base_model().get_decoder().layers[0].mlp.gate_proj
    with pytest.raises(UserError, match="not of the LLaMA kind"):
        block_bytes(model, Case("cuda", 4))
