"""The search for a transcript by the LLM and by CTC together (`generate.ctc_weight`; not in the paper).

An LLM that reads what stage 0 spells (`model.spelled_tokens`) writes likely sentences, leaves clauses out and repeats
itself; CTC of the same audio tokens knows which words were said, in which order and how many. Each token is scored by
both, as joint CTC and attention decoding does (arXiv 1706.02737), so that neither has the last word.

Shapes: C clips that are transcribed, n beams of each side by side, R = C n rows, L tokens of a row, A audio tokens,
V vocabulary.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor

from salmonn.common.device import without_autocast

# Logarithms. What is never said is not infinite: differences of infinities are no number.
_NEVER = -1e5
_LEAST = -100.0  # of a token, whatever CTC holds of it: the LLM's part must still be seen beside it


class JointScores(LogitsProcessor):
    """Adds to the LLM's log-probability of each token `weight` times CTC's, given what a row says already.

    `clips`: {place in a batch of `n_clips`: log-probabilities [A, V + 1], the blank last} of those that are
    transcribed; scores of the others' rows stay as they are.
    """

    def __init__(self, clips: Mapping[int, Tensor], n_clips: int, weight: float, end_id: int) -> None:
        self.n_clips, self.weight, self.end_id = n_clips, weight, end_id
        log_probs = [*clips.values()]
        self.places = torch.tensor([*clips], device=log_probs[0].device)  # [C]
        # behind its end a clip is blank for sure, which changes nothing
        self.blank = pad_sequence([clip[:, -1] for clip in log_probs], batch_first=True).double()  # [C, A]
        self.probs = pad_sequence([clip[:, :-1].exp() for clip in log_probs], batch_first=True)  # [C, A, V]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of what may follow the tokens so far, [n_clips x n, V] and [n_clips x n, L]."""
        n_beams = len(input_ids) // self.n_clips
        rows = (self.places[:, None] * n_beams + torch.arange(n_beams, device=self.places.device)).flatten()  # [R]
        own = scores[rows].log_softmax(dim=-1)  # of a search with one beam they are logits
        with without_autocast(scores.device):  # probabilities are summed
            of_next = self._of_next(input_ids[rows], n_beams)
        # an LLM may have outputs that are no input, and the other way round
        of_next = F.pad(of_next, (0, max(0, own.shape[1] - of_next.shape[1])), value=_LEAST)[:, : own.shape[1]]
        return scores.index_copy(0, rows, (own + self.weight * of_next).to(scores.dtype))

    def _of_next(self, said: Tensor, n_beams: int) -> Tensor:
        """CTC's log-probability [R, V] that after tokens [R, L] comes this one, or at the end symbol nothing."""
        blank, of_tokens = self.blank.repeat_interleave(n_beams, dim=0), self._of_said(said, n_beams)
        (ended_blank, ended_token), begun = prefix_paths(blank, of_tokens, said)  # [R, A + 1] each, [R]
        either = torch.logaddexp(ended_blank, ended_token) - begun[:, None]
        follows = self._followed(either[:, :-1], n_beams)
        if said.shape[1]:  # the last one once more: only behind a blank
            again = (ended_blank[:, :-1] + of_tokens[..., -1]).logsumexp(dim=1) - begun
            follows.scatter_(1, said[:, -1:], again[:, None].float())
        follows[:, self.end_id] = either[:, -1].float()
        is_possible = begun[:, None] > _NEVER / 2  # of what is not, CTC says nothing
        return follows.clamp_(min=_LEAST).mul_(is_possible)

    def _of_said(self, said: Tensor, n_beams: int) -> Tensor:
        """Log-probabilities [R, A, L] of tokens [R, L] at each audio token."""
        of_clips = self.probs[:, None].expand(-1, n_beams, -1, -1)  # [C, n, A, V]
        places = said.unflatten(0, (-1, n_beams))[:, :, None].expand(-1, -1, self.probs.shape[1], -1)
        return of_clips.gather(3, places).flatten(0, 1).double().log().clamp(min=_NEVER)

    def _followed(self, paths: Tensor, n_beams: int) -> Tensor:
        """Log-probability [R, V] that a token follows any of the paths [R, A]: the sum over when it does."""
        most = paths.amax(dim=1, keepdim=True)
        by_clip = (paths - most).exp().unflatten(0, (-1, n_beams))  # [C, n, A]
        sums = (by_clip.to(self.probs.dtype) @ self.probs).flatten(0, 1)
        return sums.log_().clamp_(min=_NEVER).add_(most.to(sums.dtype))  # of all words: in float32, and in place


def prefix_paths(blank: Tensor, of_tokens: Tensor, said: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """CTC's paths that say the rows' tokens [R, L] and nothing more, by log-probabilities at each audio token.

    Of the blank [R, A], and of the rows' tokens [R, A, L], float64. Returns the log-probabilities [R, A + 1] of the
    paths that have said all before each audio token, and behind the last one, and ended with a blank, and of those that
    ended with the last token; and [R] that a row begins so, whatever follows.

    A token after the other, all audio tokens at once: what stays at a token is a running sum, less what was added to it
    before a path came.
    """
    always = F.pad(blank.cumsum(dim=1), (1, 0))  # [R, A + 1]: blanks from the beginning
    never = torch.full_like(always, _NEVER)
    ended_blank, ended_token, begun = always, never, torch.zeros_like(always[:, 0])
    for k in range(said.shape[1]):
        of_token = of_tokens[..., k]
        before = ended_blank
        if k:
            is_other = (said[:, k] != said[:, k - 1])[:, None]
            before = torch.logaddexp(ended_blank, torch.where(is_other, ended_token, never))
        arriving = before[:, :-1] + of_token  # [R, A]
        begun = arriving.logsumexp(dim=1)
        stays = of_token.cumsum(dim=1)
        ended_token = torch.cat([never[:, :1], (arriving - stays).logcumsumexp(dim=1) + stays], dim=1)
        left = (ended_token - always).logcumsumexp(dim=1)[:, :-1] + always[:, 1:]
        ended_blank = torch.cat([never[:, :1], left], dim=1)
    return (ended_blank.clamp(min=2 * _NEVER), ended_token.clamp(min=2 * _NEVER)), begun
