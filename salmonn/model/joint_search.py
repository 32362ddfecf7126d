"""The search for a transcript by the LLM and by CTC together (`generate.ctc_weight`; not in the paper).

An LLM that reads what stage 0 spells (`model.spelled_tokens`) writes likely sentences, leaves clauses out and repeats
itself; CTC of the same audio tokens knows which words were said, in which order and how many. Each token is scored by
both, as joint CTC and attention decoding does (arXiv 1706.02737), so that neither has the last word.

Shapes: B clips, R rows of the search (beams of a clip side by side), L tokens of a row, A audio tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from salmonn.common.device import without_autocast

_NEVER = -1e30  # a logarithm; of what adds up to infinity nothing can be told apart


class JointScores(LogitsProcessor):
    """Adds to the LLM's log-probability of each token `weights` [B] times CTC's, given what a row says already.

    `log_probs`: of each clip [A, V + 1] with the blank last. Of a clip with weight 0 scores stay as they are.
    """

    def __init__(self, log_probs: Sequence[Tensor], weights: Tensor, end_id: int) -> None:
        longest = max(map(len, log_probs))
        silence = torch.full((log_probs[0].shape[1],), _NEVER, device=log_probs[0].device)
        silence[-1] = 0.0  # behind its end a clip is blank for sure, which changes nothing
        whole = torch.stack([torch.cat([clip, silence.expand(longest - len(clip), -1)]) for clip in log_probs])
        self.blank = whole[..., -1]  # [B, A]
        self.probs = whole[..., :-1].exp()  # [B, A, V], of which one copy is enough
        self.weights, self.end_id = weights, end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V] of what may follow tokens [R, L]."""
        own = scores.log_softmax(dim=-1)  # of a search with one beam they are logits
        n_beams = len(input_ids) // len(self.weights)
        weights = self.weights.repeat_interleave(n_beams)[:, None]
        with without_autocast(scores.device):  # probabilities are summed
            joint = own + weights * self._of_next(input_ids, n_beams)[:, : own.shape[1]]
        return torch.where(weights > 0, joint, scores)

    def _of_next(self, said: Tensor, n_beams: int) -> Tensor:
        """CTC's log-probability [R, V] that after tokens [R, L] comes this one, or at the end symbol nothing."""
        blank, of_tokens = self.blank.repeat_interleave(n_beams, dim=0), self._of_said(said, n_beams)
        before, arrived = prefix_paths(blank, of_tokens, said)
        ended_blank, ended_token = before.unbind(-1)  # [R, A + 1]
        either = torch.logaddexp(ended_blank, ended_token)
        follows = self._begun(either[:, :-1], n_beams)
        if said.shape[1]:  # the last one once more: only behind a blank
            again = (ended_blank[:, :-1] + of_tokens[..., -1]).logsumexp(dim=1, keepdim=True)
            follows = follows.scatter(1, said[:, -1:], again)
        follows[:, self.end_id] = either[:, -1]
        return follows - arrived[:, None]

    def _of_said(self, said: Tensor, n_beams: int) -> Tensor:
        """Log-probabilities [R, A, L] of tokens [R, L] at each audio token."""
        of_clips = self.probs[:, None].expand(-1, n_beams, -1, -1)  # [B, n, A, V]
        places = said.unflatten(0, (-1, n_beams))[:, :, None].expand(-1, -1, self.probs.shape[1], -1)
        return _log(of_clips.gather(3, places).flatten(0, 1))

    def _begun(self, paths: Tensor, n_beams: int) -> Tensor:
        """Log-probability [R, V] that a token begins behind any of the paths [R, A]: the sum over when it does."""
        most = paths.amax(dim=1, keepdim=True)
        by_clip = (paths - most).exp().unflatten(0, (-1, n_beams))  # [B, n, A]
        return _log((by_clip @ self.probs).flatten(0, 1)) + most


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def prefix_paths(blank: Tensor, of_tokens: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """CTC's paths of rows that say tokens [R, L] and nothing more, by log-probabilities at each audio token.

    Of the blank [R, A], and of the rows' tokens [R, A, L]. Returns the
    log-probability [R, A + 1, 2] of those paths that have said all before each audio token, and behind the last one,
    and ended with a blank or with the last token; and [R] that a row begins so, whatever follows.
    """
    n_rows, n_tokens = said.shape
    ended_blank = torch.full((n_rows, n_tokens + 1), _NEVER, device=said.device)  # after 0 to L tokens
    ended_blank[:, 0] = 0.0
    ended_token = torch.full_like(ended_blank, _NEVER)
    is_again = F.pad(said[:, 1:] == said[:, :-1], (1, 0)) if n_tokens else said.bool()  # [R, L]
    before, arrivals = [], []
    for t in range(blank.shape[1]):
        before.append(torch.stack([ended_blank[:, -1], ended_token[:, -1]], dim=-1))
        without_blank = ended_token[:, :-1].masked_fill(is_again, _NEVER)
        arriving = torch.logaddexp(ended_blank[:, :-1], without_blank) + of_tokens[:, t]  # [R, L]
        stays = ended_token[:, 1:] + of_tokens[:, t]
        ended_blank = torch.logaddexp(ended_blank, ended_token) + blank[:, t, None]
        ended_token = torch.cat([torch.full_like(ended_token[:, :1], _NEVER), torch.logaddexp(stays, arriving)], dim=1)
        arrivals.append(arriving[:, -1:])
    before.append(torch.stack([ended_blank[:, -1], ended_token[:, -1]], dim=-1))
    begins = torch.cat(arrivals, dim=1).logsumexp(dim=1) if n_tokens else torch.zeros(n_rows, device=said.device)
    return torch.stack(before, dim=1), begins
