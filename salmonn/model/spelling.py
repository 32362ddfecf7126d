"""What the connector spells: its audio tokens as a distribution over the LLM's own input embeddings.

CTC learns it (model/alignment.py); with `model.spelled_tokens` the LLM reads it (not in the paper; the weighted sum of
embeddings is that of LegoSLM, arXiv 2505.11352, leaving out the blanks that of CTC compression, arXiv 2102.01578).

Shapes: A audio tokens of a clip, H the LLM's width, C candidate tokens, V the vocabulary, S spelled tokens of a clip.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from salmonn.common.device import to_device, without_autocast

INITIAL_SCALE = 4.0  # of the logits
_MEASURED_ROWS = 4096  # of the embeddings, for their size
WORDS_READ = 32  # of an audio token: the rest of a vocabulary weighs nothing, and costs
_WORDS = 8192  # that audio tokens are compared with at a time
_ROWS = 256  # audio tokens that are compared with a vocabulary at a time


class Spelling(nn.Module):
    """The blank and the scale by which audio tokens are compared with the LLM's input embeddings."""

    llama_model: PreTrainedModel
    embedding_norm: Tensor  # root mean square of the embeddings' norms

    def add_spelling(self) -> None:
        """Begin with a blank without a direction. Names are those of stage 0's checkpoints."""
        embeddings = self.llama_model.get_input_embeddings()
        n_rows, width = embeddings.weight.shape
        rows = torch.arange(0, n_rows, max(1, n_rows // _MEASURED_ROWS), device=embeddings.weight.device)
        # logits are measured in it: the families' embeddings differ a hundredfold in size, and one scale has to fit all
        self.register_buffer("embedding_norm", embeddings(rows).float().square().sum(1).mean().sqrt(), persistent=False)
        self.ctc_blank = nn.Parameter(torch.zeros(width))
        self.ctc_log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    @property
    def vocabulary_size(self) -> int:
        """Input embeddings of the LLM; its tokenizer may know fewer."""
        return self.llama_model.get_input_embeddings().weight.shape[0]

    def words(self, candidates: Tensor) -> Tensor:
        """The LLM's input embeddings [C, H] of candidate tokens [C], in its precision."""
        return self.llama_model.get_input_embeddings()(to_device(candidates, self.ctc_blank.device))

    def log_probs(self, embeds: Tensor, words: Tensor, log_weights: Tensor | None = None) -> Tensor:
        """Log-probabilities [A, C + 1] of words' input embeddings [C, H] and, last, the blank; of audio tokens [A, H].

        The products are in the words' precision if that is bfloat16, else in float32, as float16 may be too narrow for
        them. `log_weights` [C]: logarithms of how many words each of them stands for, one by default.
        """
        dtype = words.dtype if words.dtype == torch.bfloat16 else torch.float32
        with without_autocast(embeds.device):  # a softmax over thousands wants float32
            # the blank on its own: in one matrix with the words it would have autograd make the gradient of all
            products = [F.linear(embeds.to(dtype), words.to(dtype)).float(), embeds.float() @ self.ctc_blank[:, None]]
            logits = self._scaled(torch.cat(products, dim=1))
        if log_weights is not None:
            logits = logits + F.pad(log_weights, (0, 1))  # the blank stands for itself
        return logits.log_softmax(dim=-1)

    def all_log_probs(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Log-probabilities [A, V + 1] of all words and, last, the blank, of clips' audio tokens [A, H]."""
        embeds, words = torch.cat([*clips]).float(), self.llama_model.get_input_embeddings()
        with without_autocast(embeds.device):
            some = torch.arange(self.vocabulary_size, device=embeds.device).split(_WORDS)  # no copy of all in float32
            products = [embeds @ words(ids).float().t() for ids in some] + [embeds @ self.ctc_blank[:, None]]
            logits = self._scaled(torch.cat(products, dim=1))
        return [*logits.log_softmax(dim=-1).split([len(clip) for clip in clips])]

    def _scaled(self, products: Tensor) -> Tensor:
        return products * (self.ctc_log_scale.exp() / self.embedding_norm)

    def spelled(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """What clips' audio tokens [A, H] say in the LLM's words: [S, H] of each, in place of them.

        Of each the expected word, as far as its `WORDS_READ` likeliest tell. Runs with the same likeliest word become
        one, their mean, and runs of the blank nothing; of a clip that is all blank, the one that is the least so.
        """
        parts = [self._said(rows) for rows in torch.cat([*clips]).split(_ROWS)]
        said = [torch.cat(part).split([len(clip) for clip in clips]) for part in zip(*parts, strict=True)]
        return [_read_once(*clip) for clip in zip(*said, strict=True)]

    def origins(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Of which audio tokens [A, H] each word of `spelled` is the mean: shares [S, A] of each clip."""
        return [_read_once(torch.eye(len(clip), device=clip.device), *self._said(clip)[1:]) for clip in clips]

    def _said(self, embeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of audio tokens [A, H] the expected words [A, H], the likeliest [A], and how much more so it is [A].

        Words are chosen in the LLM's precision, where its embeddings lie, and compared in float32: a copy of all of
        them would take longer than either.
        """
        embeddings = self.llama_model.get_input_embeddings()
        with without_autocast(embeds.device):
            in_order = F.linear(embeds.to(embeddings.weight.dtype), embeddings.weight)  # [A, V]
            tokens = in_order.topk(min(WORDS_READ, self.vocabulary_size)).indices  # [A, K]
            words = embeddings(tokens).float()  # [A, K, H]
            logits = self._scaled(torch.einsum("ah,akh->ak", embeds.float(), words))
            blank = self._scaled(embeds.float() @ self.ctc_blank)  # [A]
            expected = torch.einsum("ak,akh->ah", logits.softmax(dim=1), words)
        likeliest = logits.max(dim=1)
        return expected, tokens.gather(1, likeliest.indices[:, None])[:, 0], likeliest.values - blank


def _read_once(expected: Tensor, likeliest: Tensor, over_blank: Tensor) -> Tensor:
    """A clip's words [S, H] of its audio tokens': see `Spelling.spelled`."""
    is_blank = over_blank < 0
    _, run, n_tokens = likeliest.masked_fill(is_blank, -1).unique_consecutive(return_inverse=True, return_counts=True)
    means = torch.zeros(len(n_tokens), expected.shape[1], device=expected.device).index_add(0, run, expected)
    means = means / n_tokens[:, None]
    is_word = torch.ones_like(n_tokens, dtype=torch.bool).index_fill(0, run[is_blank], False)
    return means[is_word] if bool(is_word.any()) else expected[over_blank.argmax()][None]
