"""The connector learns to spell in the language model's embedding space: alone (stage 0), or beside the LLM's answer.

The audio tokens of a clip are scored against the LLM's own frozen input embeddings, and CTC aligns them with the
transcript's tokens: what stage 1 has to find out through all of the LLM's layers is told to the connector directly.
Not in the paper; `run.objective = ctc` and `run.ctc_weight`, see docs/training.md.

Shapes: B clips, A audio tokens of a clip, H the LLM's width, C candidate tokens, V the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import editdistance
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel

from salmonn.common.device import to_device
from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.model.llm import load_embeddings
from salmonn.model.llm_input import tokenize
from salmonn.model.salmonn import SALMONN
from salmonn.model.sharding import is_shared


class CTCModel(SALMONN):
    """A SALMONN whose connector learns by CTC beside the LLM's answer, as much as `ctc_weight` says."""

    def __init__(self, config: DictConfig, *parts: Any, **named_parts: Any) -> None:
        """As SALMONN."""
        super().__init__(config, *parts, **named_parts)
        self.ctc_weight = 0.0  # of the CTC loss; `set_ctc_weight` changes it as training goes on
        self.n_negatives, self.ctc_tasks = RunConfig.ctc_negatives, RunConfig().ctc_tasks
        self.add_spelling()

    def loss_of_batch(self, embeds: Sequence[Tensor], samples: Samples) -> dict[str, Tensor]:
        """As SALMONN's, with `ctc_weight` times the CTC loss of the clips of `ctc_tasks` in "loss"."""
        result = super().loss_of_batch(embeds, samples)
        # no parameter may be without a gradient: DDP waits for each of them
        ctc_loss = 0.0 * (self.ctc_blank.sum() + self.ctc_log_scale)
        rows = [i for i, task in enumerate(samples["task"]) if task in self.ctc_tasks]
        if rows and self.ctc_weight > 0:
            ctc_loss = self.ctc_loss([embeds[i] for i in rows], [samples["text"][i] for i in rows])["loss"]
        return {**result, "loss": result["loss"] + self.ctc_weight * ctc_loss}

    def ctc_loss(self, clips: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """CTC loss of B clips' audio tokens [A, H], per target token of the transcripts that fit into them.

        Against the batch's tokens and `n_negatives` others, drawn anew each time. Beside "loss" total (target tokens)
        and cut (transcripts that do not fit, and teach nothing).
        """
        targets = tokenize(self.tokenizer, texts)
        candidates, log_weights = draw_candidates(targets, self.n_negatives, self.vocabulary_size)
        columns = [torch.searchsorted(candidates, torch.tensor(ids, dtype=torch.long)) for ids in targets]
        lengths = [len(clip) for clip in clips]
        weights = to_device(log_weights, self.device)
        rows = self.log_probs(torch.cat([*clips]), self.words(candidates), weights).split(lengths)  # none of padding
        # not pad_sequence, whose backward pass copies the whole batch once for each clip
        log_probs = torch.stack([F.pad(row, (0, 0, 0, max(lengths) - len(row))) for row in rows])  # [B, A, C + 1]
        losses, fits = ctc_losses(log_probs, lengths, columns)
        total = sum(len(ids) for ids, fit in zip(targets, fits, strict=True) if fit)
        total = max(total, 1)  # a batch in which nothing fits has no loss, and must not be divided by
        return {
            "loss": losses.sum() / total,
            "total": torch.full((), total, device=self.device),
            "cut": torch.full((), fits.count(False), device=self.device),
        }

    def ctc_scores(self, clips: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """What validation counts of B clips' audio tokens [A, H]: loss per token and the errors of greedy CTC.

        Over the whole vocabulary, in float32, all [B]: sample_loss counts where sample_fits; sample_correct: target
        tokens less the edits that the greedy tokens need, so that its share of sample_total is 1 - token error rate;
        word_errors of words.
        """
        vocabulary, rows = self.words(torch.arange(self.vocabulary_size)).float(), []
        for clip, text, target in zip(clips, texts, tokenize(self.tokenizer, texts), strict=True):
            log_probs = self.log_probs(clip, vocabulary)  # of one clip at a time: [A, V + 1] can be large
            losses, fits = ctc_losses(log_probs[None], [len(clip)], [torch.tensor(target, dtype=torch.long)])
            said = greedy_tokens(log_probs)
            words, said_words = text.split(), self.tokenizer.decode(said, skip_special_tokens=True).split()
            errors = editdistance.eval(said_words, words)
            correct = len(target) - editdistance.eval(said, target)
            rows.append((losses.item() / max(len(target), 1), fits[0], correct, len(target), errors, len(words)))
        names = ("sample_loss", "sample_fits", "sample_correct", "sample_total", "word_errors", "words")
        return dict(zip(names, torch.tensor(rows, dtype=torch.float64).t(), strict=True))


class Aligner(CTCModel):
    """Stage 0: a `CTCModel` without LoRA and the LLM's layers; parameters have the same names."""

    def __init__(self, config: DictConfig, *parts: Any, **named_parts: Any) -> None:
        """As SALMONN; of the LLM only the input embeddings are used."""
        # Whisper's 30 s are mostly silence behind the clip, which has nothing to spell
        settings = {"lora": False, "lora_scaling": None, "gradient_checkpointing": False, "only_filled_windows": True}
        settings |= {"spelled_tokens": False, "sound_seconds": None}  # there is nobody to read them
        super().__init__(OmegaConf.merge(config, settings), *parts, **named_parts)

    @classmethod
    def _load_llm(cls, config: DictConfig, device: torch.device) -> PreTrainedModel:
        return load_embeddings(config, device)

    def loss_of_batch(self, embeds: Sequence[Tensor], samples: Samples) -> dict[str, Tensor]:
        """`ctc_loss` of a batch."""
        return self.ctc_loss(embeds, samples["text"])


def model_class(run: DictConfig) -> type[SALMONN]:
    """The kind of model that a `run` section trains."""
    if run.objective == "ctc":
        return Aligner
    return CTCModel if run.ctc_weight > 0 else SALMONN


def build_model(model: DictConfig, run: DictConfig, device: torch.device) -> SALMONN:
    """Load the model of a `model` section that a `run` section trains. Raises UserError as `SALMONN.from_config`."""
    built = model_class(run).from_config(model, device, is_shared(run.shard_llm))
    if isinstance(built, CTCModel):
        built.n_negatives, built.ctc_tasks = run.ctc_negatives, list(run.ctc_tasks)
    return built


def set_ctc_weight(model: SALMONN, run: DictConfig, share_done: float) -> None:
    """Let the CTC beside the answer fade: from `run.ctc_weight` in a straight line to 0 at a share of the run."""
    if isinstance(model, CTCModel):
        model.ctc_weight = run.ctc_weight * max(0.0, 1 - share_done / run.ctc_until)


class Candidates(NamedTuple):
    """Of C tokens, sorted by id."""

    ids: Tensor  # [C]
    log_weights: Tensor  # [C] the logarithm of how many tokens of the vocabulary each stands for


def draw_candidates(targets: Sequence[Sequence[int]], n_negatives: int, vocabulary_size: int) -> Candidates:
    """The targets' tokens and `n_negatives` random ones; all tokens where so many are asked for.

    Each drawn one stands for all that might have been drawn (sampled softmax, Jean et al. 2015), so that the loss
    expects as much of a token as the whole vocabulary does, which is what is read and tested.
    """
    if n_negatives >= vocabulary_size:
        return Candidates(torch.arange(vocabulary_size), torch.zeros(vocabulary_size))
    wanted = torch.tensor([token for ids in targets for token in ids], dtype=torch.long).unique()
    ids = torch.cat([wanted, torch.randint(vocabulary_size, (n_negatives,))]).unique()
    share = max(len(ids) - len(wanted), 1) / (vocabulary_size - len(wanted))  # of the others that were drawn
    return Candidates(ids, torch.where(torch.isin(ids, wanted), 0.0, -math.log(share)))


class CTCLosses(NamedTuple):
    """Of B clips."""

    losses: Tensor  # [B] negative log-likelihoods, 0 where the transcript does not fit
    fits: list[bool]  # whether the clip has audio tokens enough


def ctc_losses(log_probs: Tensor, lengths: Sequence[int], targets: Sequence[Tensor]) -> CTCLosses:
    """CTC (Graves et al. 2006) of targets, columns of log_probs [B, A, C + 1] whose last is the blank.

    `lengths`: audio tokens of each clip that count. Between two equal tokens a blank has to find room.
    """
    n_targets = [len(target) for target in targets]
    needed = [len(target) + int((target[1:] == target[:-1]).sum()) for target in targets]
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),  # [A, B, C + 1]
        to_device(torch.cat([*targets]), log_probs.device),
        torch.tensor(lengths),
        torch.tensor(n_targets),
        blank=log_probs.shape[-1] - 1,
        reduction="none",
        zero_infinity=True,
    )
    return CTCLosses(losses, [n <= length for n, length in zip(needed, lengths, strict=True)])


def greedy_tokens(log_probs: Tensor) -> list[int]:
    """The likeliest column of each row [A, C + 1], repetitions merged, then without the blank, the last column."""
    best = log_probs.argmax(dim=-1).unique_consecutive().tolist()
    return [column for column in best if column != log_probs.shape[-1] - 1]
