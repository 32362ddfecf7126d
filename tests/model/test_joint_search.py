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


def joint(clips, weight=0.5):
    return JointScores(dict(enumerate(clips)), len(clips), weight, END)


@pytest.mark.parametrize("said", [(), (0,), (1, 1), (2, 0), (0, 1, 0)])
def test_paths_are_those_that_counting_finds(clips, said):
    for clip in clips:
        tokens, log_probs = torch.tensor([said], dtype=torch.long), clip[None].double()
        paths, begun = prefix_paths(log_probs[..., BLANK], log_probs[..., tokens[0]], tokens)
        assert {path.shape for path in paths} == {(1, len(clip) + 1)}
        expected = by_counting(clip, said)
        torch.testing.assert_close(torch.logaddexp(*paths)[0, -1], expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(begun[0], expected[1], atol=1e-5, rtol=0)


def test_a_token_s_score_is_what_it_adds_to_the_beginning_of_its_clip(clips):
    said = torch.tensor([[1, 0], [2, 2], [0, 1], [0, 2]])  # two beams of each clip
    llm = torch.randn(4, V)
    scores = joint(clips)(said, llm)
    for row in range(4):
        clip, beginning = clips[row // 2], tuple(said[row].tolist())
        begun = by_counting(clip, beginning)[1]
        for token in range(V):
            ctc = by_counting(clip, beginning)[0] if token == END else by_counting(clip, (*beginning, token))[1]
            expected = llm[row].log_softmax(0)[token] + 0.5 * (ctc - begun).clamp(min=-100)
            torch.testing.assert_close(scores[row, token].double(), expected.double(), atol=1e-4, rtol=0)


def test_the_first_token_has_nothing_before_it(clips):
    scores = joint(clips, 1.0)(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, V))
    for row, clip in enumerate(clips):
        expected = [by_counting(clip, (token,))[1] for token in range(V - 1)] + [by_counting(clip, ())[0]]
        expected = torch.stack(expected) - torch.tensor(V).log()
        torch.testing.assert_close(scores[row].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("said", [[1], [1, 1], [2, 0, 1, 0, 2]])
def test_other_clips_of_a_batch_change_nothing(clips, said):
    said, llm = torch.tensor([said, said]), torch.randn(2, V)
    scores = JointScores({1: clips[1]}, 2, 0.3, END)(said, llm)
    assert torch.equal(scores[0], llm[0])  # which is not transcribed
    assert not torch.allclose(scores[1], llm[1])
    torch.testing.assert_close(joint(clips, 0.3)(said, llm)[1], scores[1])  # a longer one beside it
    torch.testing.assert_close(joint(clips[1:], 0.3)(said[1:], llm[1:])[0], scores[1])


def test_where_ctc_holds_nothing_possible_the_llm_decides(clips):
    llm = torch.randn(2, V)
    llm[:, END] = -torch.inf  # as where a shortest length is asked for
    full = torch.tensor(
        [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    )  # all audio tokens of the first clip, more than the second's
    scores = joint(clips)(full, llm).log_softmax(dim=1)
    torch.testing.assert_close(scores, llm.log_softmax(dim=1), atol=1e-4, rtol=0)
    assert joint(clips)(torch.full((2, 9), END), torch.randn(2, V)).isfinite().all()  # rows that have ended


def test_an_llm_may_have_other_outputs_than_inputs(clips):
    said, llm = torch.tensor([[1], [2]]), torch.randn(2, V + 2)
    scores = joint(clips)(said, llm)
    assert scores.shape == (2, V + 2)
    assert (scores[:, V:] < scores[:, :V].amin(dim=1, keepdim=True)).all()
    assert joint(clips)(said, llm[:, :END]).shape == (2, END)
