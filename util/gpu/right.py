"""Whether the device computes what the published implementation gave, alone and in batches, and in half precision."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common.device import AMP_DTYPES, autocast
from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.model import loss as loss_module
from salmonn.model.features import kaldi_fbank
from salmonn.model.salmonn import SALMONN
from salmonn.training.step import TrainingStep
from util.benchmarks.sizes import build, make_batch, rows_of
from util.gpu.golden import CASES, golden_sample, load_golden
from util.gpu.rows import Row, Setup, largest, row

AMP_BAR = 0.01  # of the loss
ALONE_BAR = 1e-4  # in float32, as tests/model/test_batch_invariance.py
CLIPS = 5
TOO_LARGE = 2.0**32  # a loss scale that fp16 gradients overflow at
SKIPPED_AT_MOST = 40


def rows(setup: Setup) -> Iterator[Row]:
    """Differences from the golden numbers in float32; loss under AMP; batch against one by one; fp16's loss scaler."""
    where = torch.device(setup.device)
    for tf32 in (False, True) if setup.device == "cuda" else (False,):
        torch.backends.cudnn.allow_tf32 = tf32
        for case in CASES:
            yield from _golden_rows(case, load_golden(case, setup.device), tf32)
    torch.backends.cudnn.allow_tf32 = False
    model = build("mini", where).eval()
    samples = make_batch(model, CLIPS, (0.2, 1.0))
    yield from _batch_rows(model, samples)
    yield from _amp_rows(model, samples)
    run = OmegaConf.structured(RunConfig(amp=True, amp_dtype="fp16", batch_size_train=1))
    one = rows_of(samples, slice(0, 1))  # of which the gradients overflow as well: float16 is slow on a CPU
    yield from scaler_rows("mini, fp16", model.train(), run, one)


def _golden_rows(name: str, case: SimpleNamespace, tf32: bool) -> Iterator[Row]:
    """The largest difference of each kind of number, over the case's samples."""
    differences: dict[str, list[float]] = defaultdict(list)
    tolerances: dict[str, float] = {}

    def note(what: str, actual: torch.Tensor | float, expected: np.ndarray | float, tolerance: float) -> None:
        found = actual.detach().float().cpu().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        differences[what].append(float(np.abs(found - expected).max()))
        tolerances[what] = tolerance

    ids = []
    for i in range(len(case.meta["samples"])):
        _compare_sample(case, i, note)
        if f"s{i}_greedy_ids" in case.expected:
            settings = {**case.meta["generate"]["common"], **case.meta["generate"]["greedy"]}
            sample = golden_sample(case, i)
            [detail] = case.model.generate(sample, settings, prompts=sample["prompts"], return_details=True)
            ids.append(detail["token_ids"] == case.expected[f"s{i}_greedy_ids"].tolist()[1:])  # published: 1 in front
    how = "convolutions in TF32, PyTorch's default" if tf32 else "float32"
    for what, tolerance in tolerances.items():
        difference = largest(differences[what])
        bar = ("apart", f"{tolerance:g}", difference <= tolerance)
        yield row(f"{name}, {how}: {what}", difference, *bar if not tf32 else (f"apart ({tolerance:g} in float32)",))
    same = f"{sum(ids)} of {len(ids)}"
    bar = ("the same", "all", bool(ids) and all(ids))
    yield row(f"{name}, {how}: greedy answers", same, *bar if not tf32 else ("the same",))


def _compare_sample(case: SimpleNamespace, i: int, note: Callable) -> None:
    model, expected, sample = case.model, case.expected, golden_sample(case, i)
    raw_wav = sample["raw_wav"].to(model.device)
    with torch.no_grad():
        mel = model.log_mel(raw_wav)
        note("log-mel", mel[0, :, :200], expected[f"s{i}_input_features"], 1e-4)
        states = model.speech_encoder(mel).last_hidden_state
        note("Whisper", states[0, ::10], expected[f"s{i}_whisper"], 1e-4)
        if model.beats is not None:
            fbank = kaldi_fbank(raw_wav)
            note("filter bank", fbank[0, :160], expected[f"s{i}_fbank"], 1e-4)
            features, _ = model.beats(fbank)
            note("BEATs", features[0, :: int(expected[f"s{i}_beats_stride"])], expected[f"s{i}_beats"], 2e-4)
        embeds, _ = model.encode_speech(sample["raw_wav"], sample["padding_mask"])
        note("audio tokens", embeds[0], expected[f"s{i}_speech_embeds"], 2e-4)
    seen: dict[str, torch.Tensor] = {}
    original = loss_module.vocabulary_logits
    with mock.patch.object(loss_module, "vocabulary_logits", lambda *of: seen.setdefault("logits", original(*of))):
        model.zero_grad(set_to_none=True)
        loss = model(sample)["loss"]
        loss.backward()
    note("logits", seen["logits"], expected[f"s{i}_target_logits"][:, :-1], 2e-3)  # the last column is [PAD]
    note("loss", loss, float(expected[f"s{i}_loss_nopad"]), 5e-5)
    gradients = dict(model.named_parameters())
    norms = np.array([gradients[key].grad.norm().item() for key in expected["grad_keys"].tolist()])
    wanted = expected[f"s{i}_grad_norm_nopad"]
    # as the tests: 2 % of a norm, or 2e-3 where that is more
    note(
        "gradient norms, by their tolerance",
        norms / np.maximum(0.02 * wanted, 2e-3),
        wanted / np.maximum(0.02 * wanted, 2e-3),
        1.0,
    )


def _batch_rows(model: SALMONN, samples: Samples) -> Iterator[Row]:
    together = _losses(model, samples)
    alone = torch.cat([_losses(model, rows_of(samples, slice(i, i + 1))) for i in range(CLIPS)])
    difference = (together - alone).abs().max().item()
    yield row(
        "mini, float32: losses in a batch against one by one",
        difference,
        "apart",
        f"{ALONE_BAR:g}",
        difference <= ALONE_BAR,
    )
    for beams in (1, 4):
        settings = {"num_beams": beams, "max_new_tokens": 12}
        batch = model.generate(samples, settings, return_details=True)
        singles = [
            model.generate(rows_of(samples, slice(i, i + 1)), settings, return_details=True)[0] for i in range(CLIPS)
        ]
        same = sum(a["token_ids"] == b["token_ids"] for a, b in zip(batch, singles, strict=True))
        yield row(
            f"mini, float32: answers in a batch against one by one, beams {beams}",
            f"{same} of {CLIPS}",
            "the same",
            "all",
            same == CLIPS,
        )


@torch.no_grad()
def _losses(model: SALMONN, samples: Samples) -> torch.Tensor:
    return model(samples, verbose=True)["sample_loss"]


def _amp_rows(model: SALMONN, samples: Samples) -> Iterator[Row]:
    whole = _losses(model, samples).mean().item()
    for name, dtype in AMP_DTYPES.items():
        with torch.autocast(model.device.type, dtype):
            half = _losses(model, samples).mean().item()
        apart = abs(half - whole) / whole
        yield row(f"mini: loss under {name} AMP against float32", 100 * apart, "% apart", "1 %", apart <= AMP_BAR)


def scaler_rows(what: str, model: SALMONN, run: DictConfig, samples: Samples) -> Iterator[Row]:
    """fp16 gradients that overflow leave steps out, which changes nothing, and halve the scale until they do not."""
    step = TrainingStep(model, run, model.device)
    step.scaler = torch.amp.GradScaler(model.device.type, init_scale=TOO_LARGE)
    before, skipped, unchanged = [p.detach().clone() for p in step.trainable], 0, True
    while unchanged and skipped < SKIPPED_AT_MOST:
        with autocast(run, model.device):
            result = model(samples, verbose=True)
        step.backward(result, samples["id"], 1)
        if math.isfinite(step.finish(1).grad_norm):
            break
        skipped += 1
        unchanged = all(map(torch.equal, before, step.trainable))
    ok = unchanged and 0 < skipped < SKIPPED_AT_MOST
    what = f"{what}: steps left out from a loss scale of 2^{math.log2(TOO_LARGE):g}, nothing changed by them"
    yield row(what, skipped, "steps", "some, then one is taken", ok)
    yield row("   the loss scale that holds", f"2^{math.log2(step.scaler.get_scale()):g}")
