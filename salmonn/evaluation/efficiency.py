"""Latency and peak memory of answers, on synthetic audio through the model's own `generate`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import StoppingCriteriaList

from salmonn.audio.decode import MIN_SECONDS, SAMPLE_RATE
from salmonn.common.device import autocast, now, peak_memory
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config, llm_quantization
from salmonn.evaluation.pipeline import load_model, session
from salmonn.evaluation.report.pages import tell, write_page
from salmonn.evaluation.report.tables import table
from salmonn.model.generation import TokenClock, of_length
from salmonn.model.salmonn import SALMONN

INSTRUCTION = "<Speech><SpeechHere></Speech> Please describe the audio."

GIB = 2**30

# The public hackathon's own measurements: 10 s of audio, batch of one, greedy, memory as allocated on the GPU, the
# log-mel made beforehand, a machine that is not known here.
HACKATHON = {
    "hackathon baseline (another machine)": {"memory": 9.18, "ttft": 0.206, "tpot": 0.045},
    "hackathon, 2B LLM in 4 bits (another machine)": {"memory": 5.32, "ttft": 0.356, "tpot": 0.107},
}


def run_efficiency(config: DictConfig, folder: Path) -> None:
    """Load the model, measure it as `evaluate.efficiency` says, write report.json and report.md and print the table."""
    config = OmegaConf.merge(config, {"run": {"use_distributed": False}})  # one process measures
    of_run = OmegaConf.to_container(config.evaluate.efficiency)
    settings = OmegaConf.merge(config.generate, {"num_beams": of_run.pop("num_beams")})
    with session(config):
        model = load_model(config, folder)
        with autocast(config.run, model.device):
            result = measure(model, settings, **of_run)
    shown = comparison(result)
    write_page(folder, "Speed and memory of answers", [shown], result)
    tell(shown, folder)


def measure(
    model: SALMONN,
    settings: Mapping[str, Any] | DictConfig | None = None,
    seconds: float = 10.0,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 50,
) -> dict[str, Any]:
    """Time answers of exactly `new_tokens` tokens to one clip of `seconds`, `runs` times after `warmup` times.

    `settings`: a `generate` section; of it the lengths are replaced. The caller's autocast counts and
    is told. Returns ttft_s (audio in memory to first token: features, encoders, prefill) and tpot_s (mean
    time of each further token of a run), both {"median", "min", "max"} over the runs, and
    peak_memory_gib: {"allocated", "reserved"} on the GPU in these runs, on a CPU {"resident"}, of the
    process since it began. Raises UserError for lengths that cannot be measured.
    """
    if not MIN_SECONDS <= seconds <= model.max_seconds:
        heard = f"this model hears {MIN_SECONDS:g} to {model.max_seconds:g} s"
        raise UserError(f"evaluate.efficiency.seconds = {seconds:g}: {heard}")
    if new_tokens < 2 or runs < 1:
        raise UserError(f"{runs} runs of {new_tokens} new tokens: measuring needs 1 run of 2 tokens or more")
    search = of_length(generate_config(settings), new_tokens)
    for _ in range(warmup):
        time_tokens(model, search, seconds)
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    times = [time_tokens(model, search, seconds) for _ in range(runs)]
    return {
        "device": torch.cuda.get_device_name(model.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "precision": _precision(model),
        "audio_seconds": seconds,
        "new_tokens": new_tokens,
        "num_beams": search.num_beams,
        "runs": runs,
        "warmup": warmup,
        "ttft_s": _spread([run[0] for run in times]),
        "tpot_s": _spread([(run[-1] - run[0]) / (new_tokens - 1) for run in times]),
        "peak_memory_gib": _peak_memory(model.device),
    }


def time_tokens(model: SALMONN, settings: DictConfig, seconds: float) -> list[float]:
    """Answer one clip of noise; when each token was there, in s after the call. Raises RuntimeError if one is lost."""
    noise = 0.1 * torch.randn(1, int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    prompt = model.config.prompt_template.replace("{}", INSTRUCTION, 1)
    clock = TokenClock(model.device)
    began = now(model.device)
    [answer] = model.generate(
        {"raw_wav": noise}, settings, [prompt], return_details=True, stopping_criteria=StoppingCriteriaList([clock])
    )
    wanted, came, steps = settings.max_new_tokens, len(answer["token_ids"]), len(clock.times)
    if not wanted == came == steps:
        raise RuntimeError(f"{wanted} tokens were asked for, {came} came in {steps} steps")
    return [moment - began for moment in clock.times]


def comparison(result: Mapping[str, Any]) -> str:
    """A Markdown table of what `measure` returned, beside the hackathon's figures."""
    memory = result["peak_memory_gib"]
    shown_memory = " / ".join(f"{gib:.2f}" for gib in memory.values())
    rows = [
        ["time to first token, s", _shown(result["ttft_s"]), *_hackathon("ttft")],
        ["time per output token, s", _shown(result["tpot_s"]), *_hackathon("tpot")],
        [f"peak memory, GiB ({', '.join(memory)})", shown_memory, *_hackathon("memory")],
    ]
    what = (
        f"{result['audio_seconds']:g} s of audio, {result['new_tokens']} new tokens, {result['num_beams']} beams, "
        f"batch of one, on {result['device']}; {result['precision']}; median (min to max) of {result['runs']} runs "
        f"after {result['warmup']} to warm up"
    )
    return f"{table(['', 'this run', *HACKATHON], rows)}\n\n{what}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        return {"allocated": torch.cuda.max_memory_allocated(device) / GIB, "reserved": peak_memory(device) / GIB}
    return {"resident": peak_memory(device) / GIB}


def _precision(model: SALMONN) -> str:
    llm, kind = model.llama_model, model.device.type
    parts = [f"LLM {_name(llm.dtype)}", f"encoders {_name(model.speech_encoder.dtype)}"]
    if llm_quantization(model.config) != "none":
        parts[0] = f"LLM {llm_quantization(model.config)}"
    elif method := getattr(llm, "quantization_method", None):  # its own files are quantised
        parts[0] = f"LLM {method.value}"
    if torch.is_autocast_enabled(kind):
        parts.append(f"autocast {_name(torch.get_autocast_dtype(kind))}")
    return ", ".join(parts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['min']:.3f} to {spread['max']:.3f})"


def _hackathon(figure: str) -> list[str]:
    return [f"{figures[figure]:g}" for figures in HACKATHON.values()]
