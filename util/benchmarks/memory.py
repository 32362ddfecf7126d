"""Memory of a training step: predicted for a GPU by part, and against what a step really takes on the CPU."""

import argparse
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.config.loading import llm_quantization, load_config
from salmonn.config.schema import RunConfig
from salmonn.model.beats import PUBLISHED_SIZES
from salmonn.model.llm import llm_dtype
from salmonn.model.meta_model import build_meta_model
from salmonn.model.random_model import (
    LLAMA_3B,
    VICUNA_7B,
    VICUNA_13B,
    WHISPER_LARGE,
    random_llm,
    random_model,
)
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import audio_tokens
from util.benchmarks.measure import in_own_process, peak_growth
from util.benchmarks.memory_parts import Batch, Case, frozen_weights, phases, trained_weights
from util.benchmarks.sizes import SIZES, build, make_batch, make_tokenizer
from util.benchmarks.training import BATCH, MEMORY_STEPS, our_step

BATCHES = (1, 2, 4, 8, 16, 32)  # of the table
MOST = 512  # clips that are looked at for the largest batch
INSTRUCTION_TOKENS = 40  # BOS, template and prompt
CONTEXT = 0.8 * GB  # of CUDA, cuBLAS and NCCL: an assumption
FRAGMENTATION = 0.1  # of all but the weights, which the allocator cannot use: an assumption
PUBLISHED = {  # shapes of published models, by the names of their folders and files
    "vicuna-13b-v1.1": VICUNA_13B,
    "vicuna-7b-v1.5": VICUNA_7B,
    "Llama-3.2-3B-Instruct": LLAMA_3B,
    "whisper-large-v2": WHISPER_LARGE,
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt": PUBLISHED_SIZES,
}
CPU, META = torch.device("cpu"), torch.device("meta")
PARTS = ("weights", "trained", "optimiser", "gradients", "LLM", "Q-Former", "logits", "encoders", "backward", "margin")


def bench_memory(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: the predicted parts for some batches and the largest batch, both with and without checkpointing.

    For a size that a CPU can train, also what it takes there in float32, predicted and measured.
    """
    measured = _measured_rows(args) if _is_measurable(args) else []  # while this process holds nothing
    model, case, name = subject(args)
    answer = args.answer_tokens or model.config.max_txt_len
    tokens = audio_tokens(model) + INSTRUCTION_TOKENS + answer
    yield {"what": f"memory of {name} on one GPU, PREDICTED"}
    yield {"what": f"   clips of {model.max_seconds:g} s, rows of {tokens} tokens, of which {answer} are the answer"}
    yield {"what": f"   assumed margin: {CONTEXT / GB:g} GB for CUDA, {FRAGMENTATION:.0%} of all but the weights"}
    for part, size in frozen_weights(model, case).items():
        yield {"what": f"   frozen weights of {part}", "value": size / GB, "unit": "GB"}
    for checkpointing in (False, True):
        yield from _table(model, replace(case, checkpointing=checkpointing), answer, args.gpu_gb)
    yield from measured


def subject(args: argparse.Namespace) -> tuple[SALMONN, Case, str]:
    """What is asked for: model without values, conditions, and its name."""
    if not args.cfg_path:
        model = build(args.size, META, args.dtype)
        number = getattr(torch, args.dtype).itemsize
        name = f"{args.size}, {args.dtype if args.quant == 'none' else args.quant}"
        return model, Case("cuda", number, args.quant, amp=number == 2, gradients_stay=True), name
    config = load_config(args.cfg_path, args.options)
    if not (config.model.freeze_whisper and config.model.freeze_beats):
        raise UserError("model.freeze_whisper and model.freeze_beats must be True: trained encoders keep more")
    return model_without_values(config.model), case_of(config), str(args.cfg_path)


def case_of(config: DictConfig, device: str = "cuda") -> Case:
    """The conditions of a run with this configuration."""
    number = llm_dtype(config.model, torch.device(device)).itemsize
    return Case(
        device,
        number,
        llm_quantization(config.model),
        amp=config.run.amp,
        checkpointing=config.model.gradient_checkpointing,
        gradients_stay=True,
    )


def model_without_values(section: DictConfig) -> SALMONN:
    """The model of a `model` section without values: from its folders, else by the names of published models.

    Raises UserError for a model that is neither here nor known.
    """
    keys = [key for key in ("llama_path", "whisper_path", "beats_path") if section[key]]
    if all(Path(section[key]).exists() for key in keys):
        return build_meta_model(section)
    if unknown := [f"model.{key} = {section[key]}" for key in keys if Path(section[key]).name not in PUBLISHED]:
        raise UserError(
            f"{', '.join(unknown)}: its shape is not known. Put all of the run's models in their places, "
            f"or name published ones: {', '.join(PUBLISHED)}"
        )
    shapes = {key: PUBLISHED[Path(section[key]).name] for key in keys}
    with META:
        llm = random_llm(shapes["llama_path"])
        return random_model(section, llm, shapes["whisper_path"], shapes.get("beats_path"), make_tokenizer())


def _table(model: SALMONN, case: Case, answer: int, gpu_gb: float) -> Iterator[dict]:
    how = "with" if case.checkpointing else "without"
    yield {"what": f"   GB {how} model.gradient_checkpointing", "columns": [*PARTS, "all"]}
    for clips in BATCHES:
        parts = predicted(model, case, longest(model, clips, answer))
        total = sum(parts.values())
        fits = "fits" if total <= gpu_gb * GB else f"too big for {gpu_gb:g} GB"
        by_name = {part: parts.get(part, 0) / GB for part in PARTS} | {"all": total / GB}
        yield {"what": f"      batch {clips}, {fits}", "gb": by_name}
    most = largest_batch(model, case, answer, gpu_gb * GB)
    yield {"what": f"      largest batch in {gpu_gb:g} GB, predicted", "value": most, "unit": "clips"}


def predicted(model: SALMONN, case: Case, batch: Batch) -> dict[str, float]:
    """Bytes by part where a training step is at its highest."""
    trained = trained_weights(model)
    working = max(phases(model, case, batch).values(), key=lambda parts: sum(parts.values()))
    parts = {"trained": trained, "optimiser": 2 * trained, **working}
    margin = CONTEXT + FRAGMENTATION * sum(parts.values())
    return {"weights": sum(frozen_weights(model, case).values()), **parts, "margin": margin}


def longest(model: SALMONN, clips: int, answer: int) -> Batch:
    """A batch of clips that fill what the model hears, with answers of that many tokens."""
    tokens = audio_tokens(model) + INSTRUCTION_TOKENS + answer
    return Batch(clips, round(model.max_seconds * SAMPLE_RATE), tokens, clips * answer)


def largest_batch(model: SALMONN, case: Case, answer: int, size: float) -> int:
    """The most clips, up to `MOST`, whose step fits in that many bytes; 0 where none does."""

    def needed(clips: int) -> float:
        return sum(predicted(model, case, longest(model, clips, answer)).values())

    return bisect_right(range(1, MOST + 1), size, key=needed)


# ---- against the CPU


def _is_measurable(args: argparse.Namespace) -> bool:
    return not args.cfg_path and args.device == "cpu" and not SIZES[args.size].needs_gpu


def _measured_rows(args: argparse.Namespace) -> list[dict]:
    """In float32: on a CPU no other precision says anything of a GPU.

    The measured value holds some 30 to 60 MB beside tensors: what libraries load and set up in the first step.
    """
    model, clips = build(args.size, META), args.batch or BATCH
    samples = make_batch(model, clips)
    rows: list[dict] = [{"what": f"memory of {args.size} above its weights on this CPU, float32, batch {clips}"}]
    for checkpointing in (False, True):
        case = Case("cpu", 4, checkpointing=checkpointing)
        by_phase = phases(model, case, batch_of(model, samples))
        state = 2 * trained_weights(model)
        how = "with" if checkpointing else "without"
        rows.append({"what": f"   GB {how} model.gradient_checkpointing", "columns": [*PARTS, "all"]})
        for phase, parts in by_phase.items():
            parts = {"optimiser": state, **parts}
            by_name = {part: parts.get(part, 0) / GB for part in PARTS} | {"all": sum(parts.values()) / GB}
            rows.append({"what": f"      {phase}", "gb": by_name})
        highest = state + max(sum(parts.values()) for parts in by_phase.values())
        measured = in_own_process(step_growth, args.size, clips, checkpointing)
        rows.append(
            {
                "what": "      highest",
                "predicted": highest / GB,
                "measured": measured / GB,
                "deviation": highest / measured - 1,
            }
        )
    return rows


def batch_of(model: SALMONN, samples: Samples) -> Batch:
    """Sizes of a batch as `model` lays it out."""
    llm_inputs, _ = model.lay_out([audio_tokens(model)] * len(samples["text"]), samples["prompts"], samples["text"])
    clips, samples_of_longest = samples["raw_wav"].shape
    return Batch(clips, samples_of_longest, llm_inputs.token_ids.shape[1], int(llm_inputs.is_target.sum()))


def step_growth(size: str, clips: int, checkpointing: bool) -> int:
    """Bytes that our steps take beyond the model, in float32 on the CPU. For a process that does nothing else."""
    model = build(size, CPU, gradient_checkpointing=checkpointing).train()
    run = OmegaConf.structured(RunConfig(amp=False, batch_size_train=clips))
    step = our_step(model, run, make_batch(model, clips))
    return peak_growth(lambda: [step() for _ in range(MEMORY_STEPS)], CPU)
