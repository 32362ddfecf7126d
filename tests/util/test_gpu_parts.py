"""What only a GPU runs of util/gpu_check.py, run here: the same code at mini size, torch.cuda's answers made up."""

import linecache
import platform
import re
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path
from traceback import FrameSummary

import pytest
import torch

import salmonn
from salmonn.doctor.findings import WRONG, Finding
from salmonn.model.compilation import repeated_blocks
from salmonn.training.token_batches import Budget
from tests.fixtures.paths import ROOT
from util.gpu import answers, compiled, environment, fast, fits, kernels, rows, tokens, waits
from util.gpu.rows import Setup, row
from util.gpu.waits import Place

CPU, GB = torch.device("cpu"), 10**9
STEP_FILE = "salmonn/training/step.py"


def by_what(lines) -> dict[str, dict]:
    return {line["what"].strip(): line for line in lines}


# ---- the environment


def test_the_environment_names_versions_also_where_a_package_is_missing(monkeypatch):
    def said() -> dict[str, str]:
        return {line["what"]: line["value"] for line in environment.rows(Setup("cpu", "mini"))}

    monkeypatch.setattr(environment, "peak_of", lambda *_: 1.0)
    monkeypatch.setattr(environment, "COPY_BYTES", {"cpu": 8})
    with_it = said()["python, torch, CUDA, transformers"]
    assert with_it.split(", ")[0::3] == [platform.python_version(), metadata.version("transformers")]
    assert environment.version_of("no-such-package") == "none"
    monkeypatch.setattr(environment, "version_of", lambda _: "none")
    monkeypatch.setattr(environment, "check_packages", lambda: [Finding(WRONG, "peft", "not installed", "")])
    without = said()
    assert without["python, torch, CUDA, transformers"].endswith(", none")
    assert without["package peft"] == "not installed"
    assert without["packages"] == "see above"


# ---- times


@pytest.mark.parametrize(("device", "seconds", "calls"), [("cuda", 1.0, 7), ("cuda", 4.0, 4), ("cpu", 1.0, 1)])
def test_calls_are_repeated_on_a_gpu_as_often_as_there_is_time_and_not_on_a_cpu(monkeypatch, device, seconds, calls):
    clock = [0.0]

    def work() -> None:
        clock[0] += seconds * (2 if len(clock) == 1 else 1)  # the first call takes longer
        clock.append(clock[0])

    monkeypatch.setattr(rows, "now", lambda _: clock[0])
    monkeypatch.setattr(rows.time, "perf_counter", lambda: clock[0])
    assert rows.seconds_of(work, torch.device(device), warm_up=2) == (seconds if calls > 1 else 2 * seconds)
    assert len(clock) == 1 + calls


# ---- memory that does not suffice


def too_big(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("part", "arguments"),
    [(fast, ("none",)), (fast, ("8bit",)), (waits, ()), (answers, ()), (tokens, ()), (compiled, ("eager",))],
)
def test_a_model_that_is_too_big_for_the_card_is_a_row(monkeypatch, part, arguments):
    monkeypatch.setattr(part, "build", too_big)
    monkeypatch.setattr(fast, "peak_of", lambda *_: 1.0)  # takes its time, and needs no model
    *_, last = part.rows(Setup("cpu", "mini"), *arguments)
    assert last["value"] == "out of memory"
    assert last["what"].startswith("mini")


def test_what_is_known_before_the_memory_is_full_is_kept():
    def measured():
        yield row("a", 1.0)
        too_big()

    assert [line["value"] for line in rows.unless_too_big("b", measured())] == [1.0, "out of memory"]


def test_another_error_is_not_taken_for_too_little_memory():
    def measured():
        yield row("a", 1.0)
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        list(rows.unless_too_big("b", measured()))


class Limited:
    """A model's step that runs with up to `most` clips; notes what was tried."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, []

    def __call__(self, _model, _run, samples):
        def step():
            self.tried.append(len(samples["text"]))
            if self.tried[-1] > self.most:
                too_big()

        return step


@pytest.fixture(scope="module")
def model():
    return fast.build("mini", CPU).train()


@pytest.mark.parametrize(("most", "tried"), [(8, [8]), (5, [8, 4]), (2, [8, 4, 2]), (1, [8, 4, 2, 1])])
def test_the_first_of_halved_batches_that_fits_is_taken(monkeypatch, model, most, tried):
    limited = Limited(most)
    monkeypatch.setattr(fast, "our_step", limited)
    batch, _ = fast.step_that_fits(model, 8)
    assert limited.tried == tried
    assert batch == tried[-1]


def test_a_card_on_which_no_clip_fits_is_told(monkeypatch, model):
    monkeypatch.setattr(fast, "our_step", Limited(0))
    with pytest.raises(torch.OutOfMemoryError):
        fast.step_that_fits(model, 8)


def test_one_way_that_does_not_fit_is_a_row_and_the_others_are_measured(monkeypatch, model):
    monkeypatch.setattr(fast, "our_step", Limited(fast.BATCH["mini"]))
    lines = list(fast._ways("mini", model, "mini", (0.4, 0.5), 1e9, 0.0))
    told = {line["what"]: line["value"] for line in lines if "batch" in line["what"]}
    small, large = fast.BATCH["mini"], fast.LARGER["mini"]
    assert told[f"mini, ours, batch {large}"] == "out of memory"
    assert told[f"mini, ours, LLM recomputed, batch {large}"] == "out of memory"
    assert told[f"mini, ours, batch {small}"] > 0
    assert lines[-1]["what"].strip() == "ours against the plain step"
    assert lines[-1]["value"] == pytest.approx(
        told[f"mini, ours, batch {small}"] / told[f"mini, plain published, its log-mel from the loader, batch {small}"]
    )


@pytest.mark.parametrize(("gigabytes", "expected"), [(24, "8bit"), (34, "8bit"), (40, "none"), (80, "none")])
def test_a_small_card_holds_the_llm_in_8_bits(monkeypatch, gigabytes, expected):
    properties = type("Properties", (), {"total_memory": gigabytes * GB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert rows.quantisation_for(torch.device("cuda")) == expected
    assert rows.quantisation_for(CPU) == "none"
    monkeypatch.setattr(rows, "find_spec", lambda _: None)
    assert rows.quantisation_for(torch.device("cuda")) == "none"


# ---- fits


@pytest.mark.parametrize(
    ("most", "start", "stride", "found"),
    [
        (10, 4, 2, 10),
        (11, 4, 2, 10),
        (4, 4, 1, 4),
        (3, 10, 2, 2),
        (1, 10, 4, 1),
        (0, 10, 4, 0),
        (0, 1, 1, 0),
        (1, 1, 1, 1),
    ],
)
def test_the_largest_batch_is_looked_for_both_ways_and_none_is_tried_twice(most, start, stride, found):
    tried = []
    assert fits.largest_that_fits(lambda clips: tried.append(clips) or clips <= most, start, stride) == found
    assert len(tried) == len(set(tried))
    assert min(tried) >= 1


@pytest.fixture
def card(monkeypatch):
    """A GPU of some bytes, as PyTorch tells them; notes the shares that it is limited to."""
    shares = []

    def of(total: int, outside: int = GB // 2) -> list[float]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (total - outside, total))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
        return shares

    return of


def subject(file: str) -> fits.Subject:
    config = fits.load_config(ROOT / file)
    keys = {key: config.model[key] for key in fits.KEYS}
    quantization = fits.llm_quantization(config.model)
    model = fits.build("mini", CPU, "float32", quantization, gradient_checkpointing=True, **keys).train()
    shape = fits.build("mini", fits.META, **keys)
    return fits.Subject(file, config, model, shape, fits.case_of(config))


@pytest.mark.parametrize(
    ("file", "total", "most", "runs"),
    [
        ("configs/stage1.yaml", 80 * GB, 13, True),
        ("configs/stage1.yaml", 80 * GB, 3, False),
        ("configs/7b/stage1.yaml", 80 * GB, 4, True),
        ("configs/stage1.yaml", 24 * GB, 2, None),
        ("configs/stage1.yaml", 24 * GB, 0, None),
    ],
)
def test_the_configurations_batch_is_tried_on_the_card_that_it_is_for(monkeypatch, card, file, total, most, runs):
    shares, tried = card(total), []

    def steps(of: fits.Subject, samples: dict) -> None:
        tried.append((of.case.checkpointing, len(samples["text"])))
        if tried[-1][1] > most:
            too_big()

    monkeypatch.setattr(fits, "take_steps", steps)
    monkeypatch.setattr(fits, "largest_batch", lambda *_: 10 if most else 0)
    monkeypatch.setattr(fits, "longest_batch", lambda _model, clips, _answer: {"text": ["a"] * clips})
    what = subject(file)
    lines = list(fits.on_smaller_cards(what, total))
    [own] = [line for line in lines if ", within " in line["what"] and "batch 4 of" in line["what"]]
    assert tried[0] == (False, what.config.run.batch_size_train)
    assert own["value"] == ("runs" if most >= 4 else "out of memory")
    assert own.get("ok") is runs  # for a card that is smaller nothing is wanted
    largest = [line for line in lines if "largest batch within" in line["what"]]
    assert len(largest) == 2
    assert all(line["value"] <= most for line in largest)
    assert all(0 < share <= 1 for share in shares)
    assert max(share for share in shares if share < 1) == pytest.approx((min(32 * GB, total) - GB // 2) / total)
    assert shares[-1] == 1.0
    assert {line["what"].strip() for line in lines} >= {f"in {size} GB, PREDICTED" for size in fits.CARDS}


def test_a_card_that_is_too_small_is_told_what_is_needed():
    [line] = fits.config_rows("configs/stage1.yaml", "13b", fits.CLIPS["full"], torch.device("cuda"), 12 * GB)
    assert re.fullmatch(
        r"skipped: one clip needs (1[6-9]|2\d)\.\d GB with recomputation, this card has 12.0", line["value"]
    )


def test_steps_are_those_of_a_run_gradients_held_between_micro_batches(monkeypatch):
    what, held = subject("configs/stage1.yaml"), []
    backward = fits.TrainingStep.backward
    monkeypatch.setattr(
        fits.TrainingStep,
        "backward",
        lambda self, *of: (held.append(any(p.grad is not None for p in self.trainable)), backward(self, *of)),
    )
    with fits.one_rank_group(CPU):
        fits.take_steps(what, fits.longest_batch(what.model, 1, 30))
    assert held == [False, True] * fits.STEPS


@pytest.mark.parametrize(("peak", "ok"), [(10.4, True), (9.7, True), (11.0, False), (9.0, False)])
def test_a_prediction_is_held_against_the_measured_peak(peak, ok):
    parts = {"weights": 6 * GB, "trained": 1 * GB, "LLM": 3 * GB, "margin": 2 * GB}
    lines = by_what(fits.peak_rows(parts, int(peak * GB)))
    assert lines["predicted, without its margin"]["ok"] is ok
    assert lines["predicted with its margin"]["value"] == pytest.approx(12.0)


def test_a_batch_that_does_not_fit_is_a_row_with_its_prediction(monkeypatch):
    what = subject("configs/7b/stage1.yaml")
    monkeypatch.setattr(fits, "take_steps", too_big)
    [line] = fits.compared(what, 2)
    assert line["value"] == "out of memory"
    assert line["unit"].startswith("predicted ")


# ---- micro-batches by tokens


def test_a_budget_that_a_step_does_not_fit_is_not_called_right(monkeypatch, model):
    monkeypatch.setattr(tokens, "step_by_ddp", too_big)
    [line] = tokens.fullest_rows(model, [{"text": ["a"]}])
    assert (line["value"], line["ok"]) == ("out of memory", False)
    monkeypatch.setattr(tokens, "step_by_ddp", lambda *_: lambda: None)
    [line] = tokens.fullest_rows(model, [{"text": ["a"]}])
    assert (line["value"], line["ok"]) == ("run", True)


def test_a_budget_of_less_than_a_clip_is_filled_by_one(monkeypatch, model):
    tried = []
    monkeypatch.setattr(tokens, "build", lambda *_: model)
    monkeypatch.setattr(tokens, "token_budget", lambda *_: Budget(tokens.input_tokens(model) - 1))
    monkeypatch.setattr(tokens, "step_by_ddp", lambda _model, _run, batches: tried.append(batches) or (lambda: None))
    lines = by_what(tokens.rows(Setup("cpu", "mini")))
    assert next(line["value"] for what, line in lines.items() if "of the longest clips" in what) == 1
    assert [len(batch["text"]) for batch in tried[0]] == [1, 1]


def test_the_clips_that_are_cut_by_tokens_come_in_no_order_with_their_own_texts(model):
    given, step = tokens.make_batch(model, 6, tokens.SHARES), tokens.clips_of(model, 6)
    order = [given["id"].index(name) for name in step["id"]]
    assert sorted(order) == list(range(6)) != order
    assert step["text"] == [given["text"][i] for i in order]
    assert torch.equal(step["padding_mask"], given["padding_mask"][order])
    cut = tokens.micro_batches(model, [step], Budget(2 * tokens.input_tokens(model)))
    assert sorted(name for batch in cut for name in batch["id"]) == sorted(given["id"])
    assert len(cut) > 1


# ---- kernels


KERNELS = {
    "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_stage3_warpsize2x2x1_g1_"
    "tensor16x8x16_kernel_cudnn": "convolutions",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_128x128_32x4_nhwc_align8>":
        "convolutions",
    "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>": "convolutions",
    "void at::native::im2col_kernel<c10::BFloat16>(long, c10::BFloat16 const*, long)": "convolutions",
    "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>": "convolutions",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNN": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>": "matrix products",
    "void kgemm_4bit_inference_naive<__nv_bfloat16, 128, 16>": "matrix products",
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t>>":
        "attention",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128": "attention",
    "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>": "quantisation",
    "void kInt8VectorQuant<__half, 1024, 0>": "quantisation",
    "void at::native::(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, bool>":
        "dropout",
    "Memcpy HtoD (Pinned -> Device)": "copies and casts",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>":
        "copies and casts",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>>": "copies and casts",
    "void at::native::multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float, NormType::L2>>":
        "optimiser",
    "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, FusedAdamMathFunctor<float>>":
        "optimiser",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float>>>":
        "norms and sums",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>":
        "norms and sums",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "between GPUs",
    "void regular_fft_512<3072u>": "spectra",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>": "elementwise",
    "void at::native::index_elementwise_kernel<128, 4, at::native::gpu_index_kernel>": "elementwise",
    "void at::native::vectorized_gather_kernel<16, long>": "elementwise",
    "void at::native::(anonymous namespace)::replication_pad_forward_kernel2d<float>": "others",
    "void indicator_of_something": "others",
    "void convert_to_something": "others",
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_booked_by_what_it_does(name):
    assert kernels.kind_of(name) == KERNELS[name]


def test_the_profile_of_a_step_fills_it(model):
    step = fast.our_step(model, fast.run_section(2), fast.make_batch(model, 2))
    step()
    first, *lines = kernels.kernel_rows("mini", step, CPU)
    shares = {line["what"].strip(): line["value"] for line in lines}
    assert {"matrix products", "attention", "convolutions", "optimiser"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(first["value"])


# ---- waits


def function_in(path: str, name: str):
    """A function that stands in a file, as far as its frames tell, and makes PyTorch warn that it waits."""
    space = {"warnings": warnings}
    source = (
        f"def {name}(times=1):\n    for _ in range(times):\n        warnings.warn('called a synchronizing CUDA op')\n"
    )
    exec(compile(source, path, "exec"), space)
    linecache.checkcache(path)
    return space[name]


def test_places_that_wait_are_named_counted_and_compared_with_what_is_known(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    package = Path(salmonn.__file__).parent
    finish = function_in(f"{package}/training/step.py", "finish")
    other = function_in(f"{package}/model/salmonn.py", "finish")  # not the one that is known

    def step(calls):
        for function, times in calls:
            function(times)
        warnings.warn("of something else", stacklevel=1)

    places = waits.synchronisations(lambda: step([(finish, 2)]))
    assert places == {Place(STEP_FILE, 3, "finish"): 2}
    assert modes == ["warn", "default"]
    assert [line["ok"] for line in waits.place_rows(places) if "bar" in line] == [True]
    more = waits.synchronisations(lambda: step([(finish, 3)]))
    assert [line["ok"] for line in waits.place_rows(more) if "bar" in line] == [False]
    elsewhere = waits.synchronisations(lambda: step([(finish, 1), (other, 1)]))
    assert [line["ok"] for line in waits.place_rows(elsewhere) if "bar" in line] == [True, False]


def test_two_lines_of_a_function_are_counted_together():
    lines = Counter({Place(STEP_FILE, 80, "finish"): 1, Place(STEP_FILE, 84, "finish"): 2})
    assert [line["ok"] for line in waits.place_rows(lines) if "bar" in line] == [False, False]


def test_a_place_that_waits_is_named_by_the_packages_innermost_function():
    package = Path(salmonn.__file__).parent
    stack = [
        FrameSummary(f"{package.parent}/util/gpu/waits.py", 1, "rows"),
        FrameSummary(f"{package}/training/step.py", 86, "finish"),
        FrameSummary("/home/salmonn/.venv/lib/python3.11/site-packages/torch/nn/utils/clip_grad.py", 5, "clip"),
    ]
    assert waits.place_of(stack) == Place(STEP_FILE, 86, "finish")
    assert waits.place_of(stack[:1]).function == "rows"
    assert waits.place_of([stack[0], stack[2]]).function == "clip"


# ---- compiled


@pytest.fixture
def fresh_compiler():
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    torch._dynamo.reset()
    with dynamo.patch(recompile_limit=dynamo.recompile_limit), functorch.patch(force_non_lazy_backward_lowering=False):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_step_is_timed_and_has_the_same_loss():
    lines = by_what(compiled.rows(Setup("cpu", "mini"), "eager"))
    assert lines["loss, dropout off, compiled against not"]["ok"]
    assert lines["loss, dropout off, compiled against not"]["value"] < 1e-2  # %: nothing was learned in between
    assert lines["first compiled step"]["value"] > 0
    assert lines["compiled against not"]["value"] > 0
    model = compiled.build("mini", CPU, layers=compiled.LAYERS)
    assert [len(stack.blocks) for stack in repeated_blocks(model)] == [1, 1, 1, 1]
