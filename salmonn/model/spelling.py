"""What the connector spells: its audio tokens as a distribution over the LLM's own input embeddings.

CTC learns it (model/alignment.py); with `model.spelled_tokens` the LLM reads it (not in the paper; the weighted sum of
embeddings is that of LegoSLM, arXiv 2505.11352, leaving out the blanks that of CTC compression, arXiv 2102.01578).

Shapes: A audio tokens of a clip, H the LLM's width, C candidate tokens, V the vocabulary, S spelled tokens of a clip.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from salmonn.common.device import to_device

INITIAL_SCALE = 4.0  # of the logits
_MEASURED_ROWS = 4096  # of the embeddings, for their size


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

    def table(self, words: Tensor) -> Tensor:
        """What audio tokens are compared with [C + 1, H]: input embeddings of words [C, H] and, last, the blank."""
        return torch.cat([words.float(), self.ctc_blank[None]])

    @property
    def vocabulary_size(self) -> int:
        """Input embeddings of the LLM; its tokenizer may know fewer."""
        return self.llama_model.get_input_embeddings().weight.shape[0]

    def table_of(self, candidates: Tensor) -> Tensor:
        """The table [C + 1, H] of candidate tokens [C]."""
        return self.table(self.llama_model.get_input_embeddings()(to_device(candidates, self.ctc_blank.device)))

    def log_probs(self, embeds: Tensor, table: Tensor, log_weights: Tensor | None = None) -> Tensor:
        """Log-probabilities [A, C + 1] of the rows of a table [C + 1, H]; of audio tokens [A, H].

        `log_weights` [C]: logarithms of how many words each of the table stands for, one by default.
        """
        with torch.autocast(embeds.device.type, enabled=False):  # a softmax over thousands wants float32
            logits = embeds.float() @ table.t() * (self.ctc_log_scale.exp() / self.embedding_norm)
            if log_weights is not None:
                logits = logits + F.pad(log_weights, (0, 1))  # the blank stands for itself
            return logits.log_softmax(dim=-1)

    def spelled(self, embeds: Tensor, table: Tensor) -> Tensor:
        """What audio tokens [A, H] say in the words of a table [V + 1, H]: [S, H], in place of them for the LLM.

        The expected word of each; runs with the same likeliest word become one, their mean, and runs of the blank
        nothing. Of a clip that is all blank, the audio token that is the least so.
        """
        log_probs = self.log_probs(embeds, table)  # [A, V + 1]
        with torch.autocast(embeds.device.type, enabled=False):
            expected = log_probs[:, :-1].softmax(dim=-1) @ table[:-1]  # if it is a word
        likeliest, run, n_tokens = log_probs.argmax(dim=1).unique_consecutive(return_inverse=True, return_counts=True)
        is_word = likeliest != len(table) - 1
        if not bool(is_word.any()):
            return expected[log_probs[:, -1].argmin()][None]
        sums = torch.zeros(len(likeliest), expected.shape[1], device=expected.device).index_add(0, run, expected)
        return (sums / n_tokens[:, None])[is_word]
