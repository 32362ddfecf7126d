"""The benchmark of answers: both sides do the same work, and time is booked where it is spent."""

import json
from argparse import Namespace

import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.model.generation import of_length
from util.benchmark import text_line
from util.benchmarks import generation
from util.benchmarks.sizes import build, make_batch, rows_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    model = build("mini", CPU).eval()
    generation.tell_clips_apart(model)
    return model


def settings_of(tokens: int, beams: int = 1):
    return of_length(generate_config({"num_beams": beams}), tokens)


def test_the_rows_of_a_batch_are_its_samples_alone(model):
    samples = make_batch(model, 3)
    parts = [rows_of(samples, slice(i, i + 1)) for i in range(3)]
    for i, part in enumerate(parts):
        length = int((~samples["padding_mask"][i]).sum())
        assert part["raw_wav"].shape == (1, length)
        assert not part["padding_mask"].any()
        assert torch.equal(part["raw_wav"][0], samples["raw_wav"][i, :length])
        assert (part["text"], part["id"]) == (samples["text"][i : i + 1], samples["id"][i : i + 1])
    assert len({part["raw_wav"].shape[1] for part in parts}) == 3


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_are_of_one_length_and_tell_the_clips_apart(model, beams):
    """Else equal ids of both sides would say nothing."""
    samples, settings = generation.make_questions(model, 3), settings_of(9, beams)
    for given in (samples, samples | {"prompts": samples["prompts"][:1] * 3}):  # by their audio alone, too
        answers = generation.answer(model, given, settings)
        assert [len(ids) for ids in answers.ids] == [9, 9, 9]
        assert len(set(map(tuple, answers.ids))) == 3


def test_the_benchmark_of_answers_finds_both_sides_equal(monkeypatch, model):
    monkeypatch.setattr(generation, "build", lambda *_, **__: model)
    monkeypatch.setattr(generation, "tell_clips_apart", lambda _: None)  # it is done
    args = Namespace(size="mini", device="cpu", dtype="float32", quant="none", batches=[1, 3], beams=[1, 4], tokens=6)
    args = Namespace(**vars(args), repeats=1, sides=None, encoder_dtype=None, attention="auto")
    rows = list(generation.bench_generate(args))
    totals = [row for row in rows if "same" in row]
    assert [(row["same"], row["of"]) for row in totals] == [(1, 1)] * 3 + [(3, 3)] * 3 + [(1, 1)] * 3 + [(3, 3)] * 3
    sides = ["one by one", "published way", "published way with SDPA"]
    assert [row["what"].rpartition(": ")[2] for row in totals] == sides * 4
    for row in totals:
        assert row["tokens_per_second"] == pytest.approx(6 * row["of"] / row["ours"])
    assert len(rows) == 4 * len(totals)
    assert "same ids: 3 of 3" in text_line(totals[3])
    args.sides, args.beams, args.batches = ["sdpa"], [1], [1]
    assert [row["what"].rpartition(": ")[2] for row in generation.bench_generate(args) if "same" in row] == sides[2:]
    assert json.loads(json.dumps(rows)) == rows


def test_answers_of_one_token_which_decode_none_are_refused(monkeypatch):
    monkeypatch.setattr(generation, "build", lambda *_, **__: pytest.fail("the model is built"))
    args = Namespace(device="cpu", dtype="float32", attention="auto", encoder_dtype=None, sides=None, tokens=1)
    with pytest.raises(UserError, match="--tokens must be 2 or more"):
        next(generation.bench_generate(args))


def test_another_answer_is_counted(model):
    given = generation.answer(model, make_batch(model, 2), settings_of(3))
    forgetful = given._replace(ids=[[0], *given.ids[1:]])
    [row, *_] = generation.rows_for(lambda: given, {"": lambda: forgetful}, 2, settings_of(3), CPU, 1)
    assert (row["same"], row["of"]) == (1, 2)


def test_the_published_way_reads_a_prompt_once_for_each_beam_and_ours_once(monkeypatch, model):
    llm, read = model.llama_model.get_base_model(), []
    forward = llm.get_decoder().forward

    def noted(*args, **kwargs):
        read.append(kwargs["inputs_embeds"].shape[:2] if kwargs.get("inputs_embeds") is not None else None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(llm.get_decoder(), "forward", noted)
    samples, settings = make_batch(model, 2), settings_of(3, 4)
    ours = generation.answer(model, samples, settings)
    rows_of_ours, read[:] = read[0][0], []
    published = generation.published(model, samples, settings)
    assert (rows_of_ours, read[0][0]) == (2, 8)
    assert ours.ids == published.ids


@pytest.mark.parametrize(
    ("slow", "expected"), [("encoding", (1.0, 0.0, 0.0)), ("prefill", (0.0, 1.0, 0.0)), ("token", (0.0, 1.0, 1.0))]
)
def test_time_of_answers_is_booked_where_it_is_spent(monkeypatch, model, slow, expected):
    """A clock that only the slow part moves: the encoders, the LLM's first call, each of its calls."""
    seconds = 0.0

    def slowed(call, every):
        def late(*args, **kwargs):
            nonlocal seconds, every
            seconds, every = seconds + float(every), every and slow != "prefill"
            return call(*args, **kwargs)

        return late

    monkeypatch.setattr(generation, "spent", lambda _device: seconds)
    owner, name = (model, "encode_and_spell") if slow == "encoding" else (model.llama_model.get_base_model(), "forward")
    monkeypatch.setattr(owner, name, slowed(getattr(owner, name), True))
    taken = generation.answer(model, make_batch(model, 1), settings_of(5, 4))
    assert (taken.encoding, taken.prefill, taken.token) == expected
