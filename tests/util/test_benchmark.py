"""The benchmark of a training step: both sides do the same work, and what is counted is what is done."""

import json
import os
import re
import sys
import time
from argparse import Namespace
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from salmonn.common.errors import UserError
from salmonn.config.schema import RunConfig
from salmonn.model.activation_memory import Recomputing
from salmonn.model.features import kaldi_fbank
from salmonn.training.optim import build_optimizer
from util import benchmark
from util.benchmark import BENCHMARKS, text_line
from util.benchmarks import attention, measure, plain_attention, plain_step, training
from util.benchmarks.flops import sample_flops
from util.benchmarks.measure import in_own_process, peak_growth
from util.benchmarks.sizes import SIZES, build, make_batch
from util.benchmarks.step_split import REST, split_step
from util.gpu import golden

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return build("mini", CPU)


def steps_of(model, samples) -> dict[str, plain_step.Step]:
    run = OmegaConf.structured(RunConfig(amp=False))
    return {side: step(model, run, samples) for side, step in training.STEPS.items()}


def gradients(model, step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and the gradient of each parameter, without dropout."""
    model.eval()
    loss = step.forward()["loss"]
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), found


def test_the_plain_step_has_our_loss_and_our_gradients(model):
    steps = steps_of(model, make_batch(model, 3))
    (loss, ours), (plain_loss, plain) = (gradients(model, steps[side]) for side in ("ours", "plain"))
    torch.testing.assert_close(plain_loss, loss, rtol=0, atol=1e-4)
    assert plain.keys() == ours.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in ours.items():
        torch.testing.assert_close(plain[name].norm(), gradient.norm(), rtol=1e-3, atol=1e-5, msg=name)
    assert min(g.norm() for name, g in ours.items() if "lora_" in name) > 1e-3  # nothing is zero for want of weights


def test_the_plain_step_has_the_numbers_of_the_published_code():
    case = golden.load_golden("base")
    for i in range(len(case.meta["samples"])):
        sample = golden.golden_sample(case, i)
        with torch.no_grad(), plain_attention.published_attention(case.model), plain_step.everything_kept(case.model):
            embeds = plain_step.heard(case.model, plain_step.extractor_of(case.model), sample)
            loss = plain_step.answer_loss(case.model, embeds, sample["prompts"], sample["text"])
        expected = torch.from_numpy(case.expected[f"s{i}_speech_embeds"])
        torch.testing.assert_close(embeds[0], expected, rtol=0, atol=2e-5)
        assert loss.item() == pytest.approx(float(case.expected[f"s{i}_loss_nopad"]), abs=5e-6)


def test_the_plain_step_keeps_everything_and_ours_goes_on_as_before(model):
    def lean() -> list:
        return [name for name, module in model.named_modules() if isinstance(module, Recomputing)]

    before = lean()
    with plain_step.everything_kept(model):
        inside = lean()
    assert len(before) > 5
    assert inside == []
    assert lean() == before


def test_the_loss_hears_the_audio(model):
    """Else equal losses would say nothing of the encoders."""
    samples = make_batch(model, 2)
    step = steps_of(model, samples)["plain"]
    loss, _ = gradients(model, step)
    samples["raw_wav"] = samples["raw_wav"].flip(1)
    assert abs(gradients(model, step)[0] - loss) > 1e-3


def test_padding_in_the_middle_is_the_plain_step_s_alone(model):
    """Why the batch of the benchmark has one prompt: with several, the published layout gives another loss."""
    samples = make_batch(model, 2)
    samples["prompts"][1] = samples["prompts"][1].replace("\n", " Write all of it down, word by word.\n")
    ours, *others = (gradients(model, step)[0] for step in steps_of(model, samples).values())
    assert all(abs(ours - plain) > 1e-4 for plain in others)


def test_a_plain_step_takes_no_fused_attention_and_leaves_none_behind(model, monkeypatch):
    from torch.nn import functional

    fused, calls = functional.scaled_dot_product_attention, []
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or fused(*a, **k))
    steps = steps_of(model, make_batch(model, 1))
    steps["plain"].forward()
    assert calls == []
    steps["ours"].forward()
    assert len(calls) == 2 + 2 + 3  # layers of Whisper, BEATs, LLM; the Q-Former's one query needs none


def test_the_sdpa_form_is_the_published_step_but_for_the_library_s_own_models(model, monkeypatch):
    """Whisper and LLaMA are transformers', whose newer versions fuse their attention; BEATs and Q-Former are not."""
    from torch.nn import functional

    fused, calls = functional.scaled_dot_product_attention, []
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or fused(*a, **k))
    steps = steps_of(model, make_batch(model, 3))
    (loss, ours), (sdpa_loss, sdpa) = (gradients(model, steps[side]) for side in ("plain", "sdpa"))
    assert len(calls) == 2 + 3  # layers of Whisper and LLM
    torch.testing.assert_close(sdpa_loss, loss, rtol=0, atol=1e-4)
    for name, gradient in ours.items():
        torch.testing.assert_close(sdpa[name].norm(), gradient.norm(), rtol=1e-3, atol=1e-5, msg=name)


def test_sides_are_chosen_and_one_that_is_not_there_is_refused(monkeypatch):
    rows = bench(monkeypatch, sides=["sdpa"])
    assert rows[0]["what"] == "   against plain with SDPA"
    assert {row["what"].strip().partition(":")[0] for row in rows if "difference" in row} == {"against plain with SDPA"}
    for sides in (["float32"], ["alone", "plain"]):
        with pytest.raises(UserError, match=f"^train: --sides {sides[0]}: here there are plain, sdpa$"):
            next(training.bench_train(of_train(sides=sides)))


@pytest.mark.parametrize(("encoders", "expected"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_our_encoders_precision_is_chosen_and_the_published_ones_stay_in_float32(encoders, expected):
    setup = training.Setup("mini", "cpu", "bfloat16", "none", 2, encoder_dtype=encoders, against=("plain", "sdpa"))
    models = training._models(setup)
    ours = models["ours"]
    assert ours.speech_encoder.layer_norm.weight.dtype == ours.beats.layer_norm.weight.dtype == expected
    assert ours.speech_encoder.dtype == ours.beats.dtype == torch.bfloat16  # products: as a run has them
    assert models["plain"].speech_encoder.dtype == torch.float32
    assert models["sdpa"] is models["plain"] is not ours


def test_attention_of_our_llm_is_chosen():
    used = {
        how: training.Setup("mini", "cpu", "float32", "none", 2, attention=how).model("ours").llama_model.config
        for how in ("sdpa", "eager")
    }
    assert {how: config._attn_implementation for how, config in used.items()} == {"sdpa": "sdpa", "eager": "eager"}


def test_eager_attention_and_sdpa_do_the_same_and_a_cache_is_as_before(monkeypatch):
    monkeypatch.setattr(attention, "LAYERS", {"tiny": attention.llama_shape(32, 1, 4, 64, vocab_size=8)})
    rows = list(attention.bench_attention(of_train()))
    assert len(rows) == len(attention.BATCHES) * len(attention.ROWS) + 2
    assert re.search(r"rows of 60 +eager +\S+ ms +sdpa +\S+ ms +\S+x$", text_line(rows[1]))
    llms = [attention._layer(attention.LAYERS["tiny"], how, CPU, torch.float32) for how in attention.ATTENTIONS]
    caches = [attention._cached(llm, torch.float32) for llm in llms]
    for llm, (cache, x) in zip(llms, caches, strict=True):
        attention.decode(llm, cache, x)
        assert cache.get_seq_length() == attention.CACHED
    torch.testing.assert_close(llms[0].get_input_embeddings().weight, llms[1].get_input_embeddings().weight)


def test_both_sides_move_the_parameters(model):
    steps = steps_of(model.train(), make_batch(model, 1))
    for step in steps.values():
        before = model.speech_llama_proj.weight.detach().clone()
        step()
        assert not torch.equal(model.speech_llama_proj.weight, before)
        assert model.speech_llama_proj.weight.grad is None


class ScorePasses(TorchDispatchMode):
    """Counts the operations whose result is as large as one layer's attention scores, all heads of a batch."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.shape, self.counts = (rows, columns), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = ("view", "expand", "transpose", "unsqueeze", "slice", "select", "alias", "detach", "permute", "t")
        name = func.overloadpacket.__name__
        if isinstance(result, torch.Tensor) and result.shape[-2:] == self.shape and name.strip("_") not in views:
            self.counts[name.strip("_")] += 1
        return result


@pytest.fixture
def frames(model) -> torch.Tensor:
    return torch.randn(2, 37, model.speech_encoder.config.d_model, generator=torch.Generator().manual_seed(0))


def test_whisper_s_scores_are_passed_over_as_often_as_published(model, frames):
    """transformers 4.28 scales the queries; the library's eager attention of today scales all scores once more."""
    attention = model.eval().speech_encoder.layers[0].self_attn
    with torch.no_grad():
        expected, _ = attention(frames)
        with plain_attention.published_attention(model), ScorePasses(37, 37) as passes:
            found, _ = attention(frames)
        attention.config._attn_implementation, before = "eager", attention.config._attn_implementation
        with ScorePasses(37, 37) as eager:
            attention(frames)
        attention.config._attn_implementation = before
    torch.testing.assert_close(found, expected)
    assert passes.counts == {"bmm": 1, "softmax": 1}
    assert eager.counts["mul"] == 1  # what made the yardstick too slow; once it is gone, the library's would do


def test_llama_s_scores_are_passed_over_as_often_as_published(model):
    llm = model.eval().llama_model.get_base_model()
    inputs = torch.randn(2, 23, llm.config.hidden_size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 23, dtype=torch.long)
    mask[1, 9:12] = 0  # published prompts have padding in the middle
    with torch.no_grad():
        expected = llm(inputs_embeds=inputs, attention_mask=mask).logits
        with plain_attention.published_attention(model), ScorePasses(23, 23) as passes:
            found = llm(inputs_embeds=inputs, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    layers = llm.config.num_hidden_layers
    per_layer = {name: passes.counts[name] // layers for name in ("bmm", "div", "maximum", "softmax", "mul")}
    assert per_layer == {"bmm": 1, "div": 1, "maximum": 1, "softmax": 1, "mul": 0}
    assert passes.counts["add"] >= layers


def test_beats_scores_are_passed_over_as_often_as_published(model):
    """Highest value off, times 32, padding, gated bias, softmax: six passes behind the product, and the bias' own."""
    encoder = model.eval().beats.encoder
    x = torch.randn(2, 19, model.beats.width, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(19) >= torch.tensor([[19], [12]])
    x[padding] = 0
    with torch.no_grad():
        expected = encoder(x, padding)
        with plain_attention.published_attention(model), ScorePasses(19, 19) as passes:
            found = encoder(x, padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-4, atol=1e-4)
    layers = len(encoder.layers)
    for name, often in {"bmm": 1, "sub": 1, "mul": 2, "masked_fill": 1, "add": 1, "softmax": 1}.items():
        assert often * layers <= passes.counts[name] <= often * layers + 3, name  # the bias' buckets, once


def test_the_q_former_s_attention_is_as_published(model):
    attention = model.eval().speech_Qformer.bert.encoder.layer[0].crossattention.self
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, attention.query.in_features, generator=generator)
    context = torch.randn(5, 17, attention.key.in_features, generator=generator)
    with torch.no_grad():
        expected = attention(x, context)
        with plain_attention.published_attention(model), ScorePasses(1, 17) as passes:
            found = attention(x, context)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    scores = {name: passes.counts[name] for name in ("bmm", "div", "softmax")}
    assert scores == {"bmm": 1, "div": 1, "softmax": 1}


def test_published_features_are_ours(model):
    generator = torch.Generator().manual_seed(0)
    wavs = 0.1 * torch.randn(2, 20_000, generator=generator)
    mels, fbanks = plain_step.mels(wavs, plain_step.extractor_of(model)), plain_step.fbanks(wavs)
    torch.testing.assert_close(mels, model.log_mel(wavs), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fbanks, kaldi_fbank(wavs), rtol=1e-3, atol=1e-3)


def test_the_published_optimiser_loops_over_the_parameters(model):
    run = OmegaConf.structured(RunConfig(amp=False))
    looping, ours = plain_step.looping_optimizer(model, run), build_optimizer(model, run.optims)
    for mine, theirs in zip(looping.param_groups, ours.param_groups, strict=True):
        assert not mine["fused"]
        assert {k: v for k, v in mine.items() if k != "fused"} == {k: v for k, v in theirs.items() if k != "fused"}


def equal_rows(model, n: int) -> dict:
    """Clips and texts of one length: nothing is padding, and all that is computed counts."""
    samples = make_batch(model, n)
    wav = samples["raw_wav"][-1]
    return samples | {
        "raw_wav": pad_sequence([wav] * n, batch_first=True),
        "padding_mask": torch.zeros(n, len(wav), dtype=torch.bool),
        "text": samples["text"][:1] * n,
    }


def test_the_formula_counts_what_pytorch_counts(model):
    n = 2
    samples = equal_rows(model, n)
    step = steps_of(model.eval(), samples)["ours"]
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused kernel of a CPU
        with FlopCounterMode(display=False) as counter:
            result = step.forward()
        counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
        with FlopCounterMode(display=False) as counter:
            result["loss"].backward()
    model.zero_grad(set_to_none=True)
    expected = training.batch_flops(model, samples)
    modules = {
        "Whisper": ["SALMONN.speech_encoder"],
        "BEATs": ["SALMONN.beats"],
        "Q-Former": ["Connector.speech_Qformer", "Connector.speech_llama_proj"],
        "LLM": ["SALMONN.llama_model.base_model.model.model"],
    }
    # ours takes the vocabulary forth and back at once, in the forward pass
    vocabulary = 2 * result["total"].item() * model.llama_model.get_output_embeddings().weight.numel()
    for part, names in modules.items():
        counted = sum(counts[name] for name in names) + (vocabulary if part == "LLM" else 0)
        assert expected[part].forward * n == pytest.approx(counted, rel=2e-3), part
    backward = sum(flops.backward for flops in expected.values())
    assert backward * n == pytest.approx(counter.get_total_flops() + vocabulary, rel=2e-3)


def test_padding_is_no_work(model):
    """A sample counts as much alone as beside a longer one."""
    both = make_batch(model, 2)
    alone = {key: value[:1] for key, value in both.items()}
    whole, first = (training.batch_flops(model, samples)["LLM"].forward for samples in (both, alone))
    second = {key: value[1:] for key, value in both.items()}
    assert whole == pytest.approx((first + training.batch_flops(model, second)["LLM"].forward) / 2)


@pytest.mark.parametrize(("size", "billions"), [("7b", 6.61), ("13b", 12.85)])
def test_the_published_sizes_are_those_of_the_papers(size, billions):
    """A token costs twice the parameters (without the table of embeddings); Whisper-large's encoder has 637 million."""
    model = build(size, torch.device("meta"), "bfloat16")
    flops = sample_flops(model, 744, 1000, 1000)
    attention = 4 * 1000 * model.llama_model.config.hidden_size * model.llama_model.config.num_hidden_layers
    assert (flops["LLM"].forward / 1000 - attention) / 2e9 == pytest.approx(billions, rel=0.01)
    assert flops["LLM"].backward == pytest.approx(flops["LLM"].forward, rel=0.1)  # frozen: only activations
    assert flops["Whisper"].forward == pytest.approx(2 * 1500 * 0.637e9, rel=0.25)  # and attention


def test_time_is_booked_where_it_is_spent(model, monkeypatch):
    delay = 0.1

    def slowed(call):
        def slow(*args, **kwargs):
            ends = time.process_time() + delay  # sleeping costs no CPU seconds
            while time.process_time() < ends:
                pass
            return call(*args, **kwargs)

        return slow

    for side, step in steps_of(model.train(), make_batch(model, 1)).items():
        parts = training.parts_of(side, model)
        for part, functions in parts.items():
            with monkeypatch.context() as patch:
                for owner, name in functions:
                    patch.setattr(owner, name, slowed(getattr(owner, name)))
                seconds = split_step(step, parts, 1, CPU)
            assert seconds[part] >= delay * len(functions), (side, part)
            assert seconds[REST] >= 0
        assert list(seconds) == [*parts, "backward", "optimiser", REST]


def grown_by(floats: int) -> list[int]:
    """Growth by a large tensor, and by a small one, in a process that had a still larger one before."""
    before = torch.ones(3 * floats)  # what came before must not hide it
    del before
    return [peak_growth(partial(torch.ones, n), CPU) for n in (floats, 100)]


def test_peak_memory_is_that_of_the_work_alone():
    floats = 12_000_000  # 48 MB
    large, small = in_own_process(grown_by, floats)  # one of other tests holds memory that it would find again
    assert 0.9 < large / (4 * floats) < 1.3
    assert small < floats


@pytest.mark.parametrize("quantization", ["8bit", "nf4", "int8"])
def test_quantised_random_weights_are_those_that_loading_makes(quantization):
    model = build("mini", CPU, quantization=quantization)
    layer = model.llama_model.get_base_model().get_decoder().layers[0]
    assert layer.mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    assert layer.self_attn.q_proj.base_layer.weight.dtype in (torch.int8, torch.uint8)
    steps = steps_of(model, make_batch(model, 2))
    ours, plain = (gradients(model, steps[side])[0] for side in ("ours", "plain"))
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    same_work = [training.batch_flops(m, make_batch(m, 1)) for m in (model, build("mini", CPU))]
    assert same_work[0] == same_work[1]


@pytest.mark.parametrize(("speed", "n"), [(1e15, 2048), (1e11, 2048), (3e10, 2048), (2e9, 512)])
def test_the_machine_s_peak_is_that_of_the_largest_products_that_take_no_time(monkeypatch, speed, n):
    """In float16 one of 2048 takes half a minute where the processor has no instructions for it."""
    tried = []
    monkeypatch.setattr(measure, "product_seconds", lambda n, *_: tried.append(n) or 2 * n**3 / speed)
    assert measure.matmul_peak(CPU, torch.float16) == pytest.approx(speed)
    assert tried[-1] == n
    assert measure.matmul_peak(CPU, torch.float16, largest=512) == pytest.approx(speed)
    assert tried[-1] == 512


def test_a_process_of_its_own_is_another_one():
    assert in_own_process(os.getpid) not in (os.getpid(), os.getppid())


def of_train(**given: object) -> Namespace:
    """Its arguments."""
    args = {"size": "mini", "device": "cpu", "dtype": "float32", "quant": "none", "batch": 2, "repeats": 1}
    ours = {"recompute": False, "whisper_silence": None, "encoder_dtype": None, "attention": "auto", "sides": None}
    return Namespace(**args | ours | given)


def bench(monkeypatch, **given: object) -> list[dict]:
    monkeypatch.setattr(training, "in_own_process", lambda function, *args: function(*args))  # which takes long
    monkeypatch.setitem(measure.MATMUL_SIZES, "cpu", measure.SMALLEST)
    # this process holds too much already
    monkeypatch.setattr(training, "held_and_peak", lambda work, _: (10**8, 10**9 * len(work())))
    rows = list(training.bench_train(of_train(**given)))
    assert all(text_line(row).startswith(row["what"]) for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    return rows


def test_in_bfloat16_ours_is_compared_with_the_plain_step_in_both_precisions(monkeypatch):
    rows = bench(monkeypatch, dtype="bfloat16")
    assert "bfloat16 autocast on both sides" in rows[0]["what"]
    assert [row["what"] for row in rows[1:3]] == ["   against plain with SDPA", "   against plain, float32"]
    by_name = {row["what"].strip(): row for row in rows}
    for name in ("loss, dropout off", "against plain with SDPA: loss", "against plain, float32: loss"):
        assert 0 < by_name[name]["difference"] < 0.01
    for name in ("weights", "against plain, float32: weights"):
        assert by_name[name]["ours"] < by_name[name]["plain"]
    assert by_name["weights"]["plain"] < by_name["against plain, float32: weights"]["plain"]  # the LLM's
    for part in ("frontends", "Whisper", "BEATs", "Q-Former", "LLM forward", "backward", "optimiser"):
        assert by_name[part]["ours"] > 0
    assert by_name["MFU of ours"]["value"] > 0
    assert by_name["data wait of ours"]["seconds"] >= 0


def test_in_float32_there_are_the_plain_step_and_its_sdpa_form_with_all_peaks(monkeypatch):
    rows = bench(monkeypatch)
    assert not any("against plain, float32" in row["what"] for row in rows)
    assert sum(row["what"] == "   against plain with SDPA" for row in rows) == 1
    by_name = {row["what"].strip(): row for row in rows}
    assert by_name["peak of the whole process"]["plain"] == pytest.approx(training.MEMORY_STEPS)
    assert by_name["peak above the loaded model"]["plain"] == pytest.approx(training.MEMORY_STEPS - 0.1)


@pytest.mark.parametrize("size", [name for name, size in SIZES.items() if size.needs_gpu])
def test_a_size_that_a_cpu_cannot_train_is_refused(size):
    with pytest.raises(UserError, match=f"--size {size} needs a GPU"):
        build(size, CPU)


@pytest.mark.parametrize("name", ["train", "generate", "attention"])
def test_a_gpu_that_is_not_there_is_told(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "load", name, "--device", "cuda"])
    monkeypatch.setitem(BENCHMARKS, "load", lambda _: pytest.fail("it was looked for too late"))
    with pytest.raises(UserError, match="no GPU"):
        benchmark.main()


def test_ours_can_hear_the_clip_alone_beside_the_published_way(monkeypatch):
    setup = training.Setup("mini", "cpu", "float32", "none", 2, silence=0.0)
    models = {side: setup.model(side) for side in setup.sides}
    tokens = {side: len(model.encode_clips(torch.zeros(1, 2 * 16_000))[0]) for side, model in models.items()}
    assert tokens == {"ours": 6, "plain": 14}
    rows = bench(monkeypatch, whisper_silence=0.0)
    assert "clips and 0 s heard" in rows[0]["what"]
    assert rows[2]["what"].strip() == "loss, dropout off"
    assert rows[2]["difference"] > 1e-5  # another model
    assert not any("operations" in row["what"] for row in rows)


def test_gpu_passes_on_what_its_script_says(monkeypatch):
    started = []

    class Script:
        stdout, returncode = ["right\n", "   a: ok\n"], 1

        def __init__(self, command, **_):
            started.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("subprocess.Popen", Script)
    rows = []
    with pytest.raises(SystemExit) as ended:
        gpu_rows(rows, device="cuda", size="13b", minutes=5.8, out=Path("/there/a folder"))
    assert ended.value.code == 1  # bars that were not met
    assert started[0][1:] == [
        "util/gpu_check.py", "--device", "cuda", "--size", "full", "--minutes", "5.8", "--out", "/there/a folder"
    ]  # fmt: skip
    assert [text_line(row) for row in rows] == ["right", "   a: ok"]
    Script.returncode = 0
    gpu_rows(rows)
    assert started[1][1:] == ["util/gpu_check.py", "--device", "cpu", "--size", "mini"]
    Script.returncode = 2
    with pytest.raises(UserError, match="it did not run"):
        gpu_rows(rows)


def gpu_rows(rows, **options):
    for row in BENCHMARKS["gpu"](
        Namespace(**{"device": "cpu", "size": "mini", "minutes": None, "out": None} | options)
    ):
        rows.append(row)


@pytest.mark.parametrize("size", ["small", "7b"])
def test_gpu_runs_no_other_size_in_place_of_the_one_that_was_asked_for(size):
    with pytest.raises(UserError, match=f"--size {size}: choose from mini, 13b"):
        gpu_rows([], size=size)


def test_gpu_runs_once_whatever_batches_are_named_and_its_exit_code_is_the_command_s(monkeypatch, tmp_path):
    calls = []

    def bench(args):
        calls.append(args.batch)
        yield {"what": "a"}
        raise SystemExit(1)

    monkeypatch.setitem(BENCHMARKS, "gpu", bench)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu", "--batch", "1", "8", "--json", "rows.json"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 1
    assert calls == [None]
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"what": "a"}]


def test_batches_of_a_benchmark_of_them_are_taken_in_turn(monkeypatch, tmp_path):
    calls = []
    for name in ("train", "load"):
        monkeypatch.setitem(BENCHMARKS, name, lambda args: calls.append(args.batch) or [])
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", "load", "--batch", "1", "8"])
    benchmark.main()
    assert calls == [1, 8, None]


def test_a_configuration_is_looked_for_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "memory", "--cfg-path", "mine.yaml"])
    assert benchmark.parse_arguments().cfg_path == tmp_path / "mine.yaml"
