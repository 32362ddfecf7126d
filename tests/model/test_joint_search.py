"""`generate.ctc_weight`: transcripts that the LLM and CTC search together."""

from itertools import product

import pytest
import torch

from salmonn.model.joint_search import JointScores, prefix_paths

V, BLANK, END = 4, 4, 3


def collapsed(path):
    """What a path of tokens and blanks says."""
    said = [token for i, token in enumerate(path) if token != BLANK and (i == 0 or path[i - 1] != token)]
    return tuple(said)


def by_counting(log_probs, said):
    """Log-probabilities that audio tokens say just this, and that they begin with it, from all paths."""
    whole = begins = 0.0
    for path in product(range(V + 1), repeat=len(log_probs)):
        probability = sum(log_probs[t, token].item() for t, token in enumerate(path))
        is_whole, is_begun = collapsed(path) == said, collapsed(path)[: len(said)] == said
        whole += is_whole * torch.tensor(probability).double().exp()
        begins += is_begun * torch.tensor(probability).double().exp()
    return torch.as_tensor(whole).log(), torch.as_tensor(begins).log()


@pytest.fixture
def clips():
    """Two clips of unlike length."""
    torch.manual_seed(0)
    return [torch.randn(n, V + 1).log_softmax(dim=1) for n in (5, 4)]


@pytest.mark.parametrize("said", [(), (0,), (1, 1), (2, 0), (0, 1, 0)])
def test_paths_are_those_that_counting_finds(clips, said):
    for clip in clips:
        tokens = torch.tensor([said], dtype=torch.long)
        before, begins = prefix_paths(clip[None, :, BLANK], clip[None][..., tokens[0]], tokens)
        whole, begun = by_counting(clip, said)
        assert before.shape == (1, len(clip) + 1, 2)
        torch.testing.assert_close(before[0, -1].logsumexp(0).double(), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(begins[0].double(), begun, atol=1e-5, rtol=0)


def test_a_token_s_score_is_what_it_adds_to_the_beginning_of_its_clip(clips):
    said = torch.tensor([[1, 0], [2, 2], [0, 1], [0, 2]])  # two beams of each clip
    llm = torch.randn(4, V)
    scores = JointScores(clips, torch.tensor([0.5, 0.5]), END)(said, llm)
    for row in range(4):
        clip, beginning = clips[row // 2], tuple(said[row].tolist())
        begun = by_counting(clip, beginning)[1]
        for token in range(V):
            ctc = by_counting(clip, beginning)[0] if token == END else by_counting(clip, (*beginning, token))[1]
            expected = llm[row].log_softmax(0)[token] + 0.5 * (ctc - begun)
            torch.testing.assert_close(scores[row, token].double(), expected.double(), atol=1e-4, rtol=0)


def test_the_first_token_has_nothing_before_it(clips):
    scores = JointScores(clips, torch.tensor([1.0, 1.0]), END)(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, V))
    for row, clip in enumerate(clips):
        expected = [by_counting(clip, (token,))[1] for token in range(V - 1)] + [by_counting(clip, ())[0]]
        torch.testing.assert_close(
            scores[row].double() + torch.tensor(V).log(), torch.stack(expected), atol=1e-4, rtol=0
        )


def test_where_ctc_has_no_weight_scores_stay_as_they_are(clips):
    said, llm = torch.tensor([[1], [2]]), torch.randn(2, V)
    scores = JointScores(clips, torch.tensor([0.0, 0.3]), END)(said, llm)
    assert torch.equal(scores[0], llm[0])
    assert not torch.allclose(scores[1], llm[1])
    alone = JointScores(clips[1:], torch.tensor([0.3]), END)(said[1:], llm[1:])
    torch.testing.assert_close(scores[1:], alone)  # whatever longer clip is beside it


def test_what_cannot_be_said_any_more_stays_finite(clips):
    many = torch.tensor([[1] * 9, [END] * 9])  # more than there are audio tokens; a row that has ended
    assert JointScores(clips, torch.tensor([1.0, 1.0]), END)(many, torch.randn(2, V)).isfinite().all()
