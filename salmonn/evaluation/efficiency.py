"""Latency and peak memory of answers, on synthetic audio through the model's own `generate`."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import StoppingCriteriaList

from salmonn.audio.decode import MIN_SECONDS, SAMPLE_RATE
from salmonn.common.device import autocast, now, peak_memory
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import generate_config, llm_quantization
from salmonn.evaluation.pipeline import load_model, session
from salmonn.evaluation.report.pages import tell, write_page
from salmonn.evaluation.report.tables import table
from salmonn.model.generation import TokenClock, of_length
from salmonn.model.salmonn import SALMONN

INSTRUCTION = "<Speech><SpeechHere></Speech> Please describe the audio."

GIB = 2**30

# The public hackathon's own measurements, by its protocol (PROTOCOL) on a machine that is not known here.
HACKATHON = {
    "hackathon baseline (another machine)": {"memory": 9.18, "ttft": 0.206, "tpot": 0.045},
    "hackathon, 2B LLM in 4 bits (another machine)": {"memory": 5.32, "ttft": 0.356, "tpot": 0.107},
}
# What its script does: 10 s of audio, a batch of one, greedy, the mean of 100 after 10; the log-mel is made beforehand,
# the transcript is asked for, one token is decoded, memory is what was allocated since the process began.
PROTOCOL: dict[str, Any] = {"audio_seconds": 10.0, "num_beams": 1, "runs": 100, "warmup": 10}
_RUNS = {"ours": (10, 2), "hackathon": (PROTOCOL["runs"], PROTOCOL["warmup"])}  # runs, and those before them


def run_efficiency(config: DictConfig, folder: Path) -> None:
    """Load the model, measure it as `evaluate.efficiency` says, write report.json and report.md and print the table."""
    config = OmegaConf.merge(config, {"run": {"use_distributed": False}})  # one process measures
    of_run = OmegaConf.to_container(config.evaluate.efficiency)
    settings = OmegaConf.merge(config.generate, {"num_beams": of_run.pop("num_beams")})
    for key, usual in zip(("runs", "warmup"), _RUNS[of_run["protocol"]], strict=True):
        of_run[key] = usual if of_run[key] is None else of_run[key]
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
    protocol: str = "ours",
) -> dict[str, Any]:
    """Time answers of exactly `new_tokens` tokens to one clip of `seconds`, `runs` times after `warmup` times.

    By the protocol "hackathon" as its script does (PROTOCOL): two tokens, and means in the place of medians.

    `settings`: a `generate` section; of it the lengths are replaced. The caller's autocast counts and
    is told. Returns ttft_s (audio in memory to first token: features, encoders, prefill) and tpot_s (mean
    time of each further token of a run), both {"median" or "mean", "min", "max"} over the runs, and
    peak_memory_gib: {"allocated", "reserved"} on the GPU in these runs, on a CPU {"resident"}, of the
    process since it began. Raises UserError for lengths that cannot be measured.
    """
    if not MIN_SECONDS <= seconds <= model.max_seconds:
        heard = f"this model hears {MIN_SECONDS:g} to {model.max_seconds:g} s"
        raise UserError(f"evaluate.efficiency.seconds = {seconds:g}: {heard}")
    if new_tokens < 2 or runs < 1:
        raise UserError(f"{runs} runs of {new_tokens} new tokens: measuring needs 1 run of 2 tokens or more")
    as_hackathon = protocol == "hackathon"
    new_tokens = 2 if as_hackathon else new_tokens
    search, question = of_length(generate_config(settings), new_tokens), question_of(model, protocol)
    time_once = partial(time_tokens, model, search, seconds, question, mel_before=as_hackathon)
    for _ in range(warmup):
        time_once()
    on_gpu = model.device.type == "cuda"
    if on_gpu and not as_hackathon:
        torch.cuda.reset_peak_memory_stats(model.device)
    times = [time_once() for _ in range(runs)]
    centre = "mean" if as_hackathon else "median"
    return {
        "device": torch.cuda.get_device_name(model.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "precision": _precision(model),
        "protocol": protocol,
        "question": question,
        "audio_seconds": seconds,
        "new_tokens": new_tokens,
        "num_beams": search.num_beams,
        "runs": runs,
        "warmup": warmup,
        "ttft_s": _spread([run[0] for run in times], centre),
        "tpot_s": _spread([(run[-1] - run[0]) / (new_tokens - 1) for run in times], centre),
        "peak_memory_gib": _peak_memory(model.device),
    }


def question_of(model: SALMONN, protocol: str) -> str:
    """What is asked: ours, or by the hackathon's protocol the model's test prompt for speech recognition."""
    if protocol == "hackathon" and "asr" in model.test_prompts:
        return model.test_prompts["asr"]
    if protocol == "hackathon":
        raise UserError(
            "evaluate.efficiency.protocol = hackathon asks for a transcript: model.test_prompt_path has no asr"
        )
    return model.config.prompt_template.replace("{}", INSTRUCTION, 1)


def time_tokens(
    model: SALMONN, settings: DictConfig, seconds: float, question: str, mel_before: bool = False
) -> list[float]:
    """Answer one clip of noise; when each token was there, in s after the call. Raises RuntimeError if one is lost.

    `mel_before`: Whisper's log-mel is made before the time begins.
    """
    noise = 0.1 * torch.randn(1, int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    samples: Samples = {"raw_wav": noise}
    if mel_before:
        samples["spectrogram"] = model.log_mel(noise.to(model.device))
    clock = TokenClock(model.device)
    began = now(model.device)
    [answer] = model.generate(
        samples, settings, [question], return_details=True, stopping_criteria=StoppingCriteriaList([clock])
    )
    wanted, came, steps = settings.max_new_tokens, len(answer["token_ids"]), len(clock.times)
    if not wanted == came == steps:
        raise RuntimeError(f"{wanted} tokens were asked for, {came} came in {steps} steps")
    return [moment - began for moment in clock.times]


def comparison(result: Mapping[str, Any]) -> str:
    """A Markdown table of what `measure` returned, beside the hackathon's figures where they were come by alike."""
    memory, as_hackathon = result["peak_memory_gib"], result["protocol"] == "hackathon"
    shown_memory = " / ".join(f"{gib:.2f}" for gib in memory.values())
    rows = [
        ["time to first token, s", _shown(result["ttft_s"])],
        ["time per output token, s", _shown(result["tpot_s"])],
        [f"peak memory, GiB ({', '.join(memory)})", shown_memory],
    ]
    differing = [f"{key} {result[key]:g}, not {value:g}" for key, value in PROTOCOL.items() if result[key] != value]
    if differing and as_hackathon:
        beside = f"No figures of the hackathon beside it: {'; '.join(differing)}."
    elif as_hackathon:
        beside = "The hackathon's figures are by the same protocol; their hardware is not told."
    else:
        beside = "The hackathon's figures are by another protocol: evaluate.efficiency.protocol=hackathon."
    others = HACKATHON if as_hackathon and not differing else {}
    for row, figure in zip(rows, ("ttft", "tpot", "memory"), strict=True):
        row += [f"{figures[figure]:g}" for figures in others.values()]
    centre = "mean" if as_hackathon else "median"
    what = (
        f"{result['audio_seconds']:g} s of audio, {result['new_tokens']} new tokens, {result['num_beams']} beams, "
        f"batch of one, on {result['device']}; {result['precision']}; {centre} (min to max) of {result['runs']} runs "
        f"after {result['warmup']} to warm up{'; log-mel made before' if as_hackathon else ''}"
    )
    return f"{table(['', 'this run', *others], rows)}\n\n{what}\n\n{beside}"


def _spread(values: Sequence[float], centre: str) -> dict[str, float]:
    middle = statistics.fmean(values) if centre == "mean" else statistics.median(values)
    return {centre: middle, "min": min(values), "max": max(values)}


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        return {"allocated": torch.cuda.max_memory_allocated(device) / GIB, "reserved": peak_memory(device) / GIB}
    return {"resident": peak_memory(device) / GIB}


def _precision(model: SALMONN) -> str:
    llm, kind = model.llama_model, model.device.type
    parts = [f"LLM {_name(llm.dtype)}", f"encoders {_name(model.speech_encoder.layer_norm.weight.dtype)}"]
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
    return "{:.3f} ({:.3f} to {:.3f})".format(*spread.values())
