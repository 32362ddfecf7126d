"""Time to first token, time per token and memory, through the real generate path of the golden tiny model."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from salmonn.common import device
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config, load_config
from salmonn.evaluation import efficiency

QUESTION = "USER: <Speech><SpeechHere></Speech> What?\nASSISTANT:"


def of_length(new_tokens: int, **settings):
    return efficiency.of_length(generate_config(settings), new_tokens)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_every_forced_token_has_its_time(golden, num_beams):
    model = golden("base").model
    times = efficiency.time_tokens(model, of_length(17, num_beams=num_beams), 2.0, QUESTION)
    assert len(times) == 17
    assert times[0] > 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_an_answer_that_would_end_early_is_made_to_go_on(golden):
    """Otherwise the times of models that answer in one word could not be compared."""
    model = golden("base").model
    ending = model.end_id
    prompt = model.config.prompt_template.replace("{}", efficiency.INSTRUCTION)
    noise = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    free = {"num_beams": 1, "max_new_tokens": 8}
    [answer] = model.generate({"raw_wav": noise}, free, [prompt], return_details=True)
    try:
        model.end_id = answer["token_ids"][1]  # now the free answer ends there
        [short] = model.generate({"raw_wav": noise}, free, [prompt], return_details=True)
        assert len(short["token_ids"]) < 8
        assert len(efficiency.time_tokens(model, of_length(8, num_beams=1), 2.0, prompt)) == 8
    finally:
        model.end_id = ending


def test_time_is_booked_where_it_is_spent(golden, monkeypatch):
    """Slow encoders delay the first token and no other; a slow LLM delays each."""
    model, delay, clock = golden("base").model, 0.125, SimpleNamespace(now=0.0)
    settings = {"num_beams": 1}
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slowed(call):
        def slow(*args, **kwargs):
            clock.now += delay
            return call(*args, **kwargs)

        return slow

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode_and_spell", slowed(model.encode_and_spell))
        result = efficiency.measure(model, settings, seconds=2.0, runs=3, warmup=1, new_tokens=4)
    assert result["ttft_s"]["min"] == result["ttft_s"]["max"] == delay
    assert result["tpot_s"]["max"] == 0
    decoder = model._causal_lm().get_decoder()
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "forward", slowed(decoder.forward))
        result = efficiency.measure(model, settings, seconds=2.0, runs=2, warmup=0, new_tokens=4)
    assert result["ttft_s"]["min"] == delay
    assert result["tpot_s"]["min"] == result["tpot_s"]["max"] == delay


def test_the_result_says_what_was_measured(golden, monkeypatch):
    model, calls = golden("base").model, []
    original = efficiency.time_tokens
    monkeypatch.setattr(
        efficiency, "time_tokens", lambda *args, **more: calls.append(original(*args, **more)) or calls[-1]
    )
    with torch.autocast("cpu", torch.bfloat16):
        result = efficiency.measure(model, {"num_beams": 1}, seconds=1.5, runs=3, warmup=2, new_tokens=5)
    assert len(calls) == 5
    measured = sorted(times[0] for times in calls[2:])
    assert result["ttft_s"] == {"median": measured[1], "min": measured[0], "max": measured[2]}
    further = [(times[-1] - times[0]) / 4 for times in calls[2:]]
    assert result["tpot_s"]["max"] == max(further)
    assert result["precision"] == "LLM float32, encoders float32, autocast bfloat16"
    assert (result["audio_seconds"], result["new_tokens"], result["runs"], result["warmup"]) == (1.5, 5, 3, 2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    assert weights < result["peak_memory_gib"]["resident"] < 64
    page = efficiency.comparison(result)
    assert f"{measured[1]:.3f} ({measured[0]:.3f} to {measured[2]:.3f})" in page
    assert "9.18" not in page
    assert "by another protocol: evaluate.efficiency.protocol=hackathon" in page
    assert len({line.count("|") for line in page.split("\n\n")[0].splitlines()}) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"seconds": 31.0}, "hears 1 to 30 s"), ({"new_tokens": 1}, "2 tokens"), ({"runs": 0}, "0 runs")],
)
def test_what_cannot_be_measured_is_refused(golden, wrong, told):
    with pytest.raises(UserError, match=told):
        efficiency.measure(golden("base").model, **wrong)


@pytest.fixture
def asked_for_a_transcript(golden, monkeypatch):
    model = golden("base").model
    monkeypatch.setattr(model, "test_prompts", {"asr": QUESTION})
    return model


def test_the_hackathons_protocol_times_one_step_without_the_log_mel(asked_for_a_transcript, monkeypatch):
    model, delay, clock, heard = asked_for_a_transcript, 0.125, SimpleNamespace(now=0.0), []
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    encode, log_mel = model.encode_and_spell, model.log_mel.forward

    def slow_mel(wav):
        clock.now += 1.0
        return log_mel(wav)

    def slow_encoders(*arguments):
        heard.append(arguments[2])
        clock.now += delay * len(heard)
        return encode(*arguments)

    monkeypatch.setattr(model.log_mel, "forward", slow_mel)
    monkeypatch.setattr(model, "encode_and_spell", slow_encoders)
    result = efficiency.measure(model, {"num_beams": 1}, seconds=2.0, runs=3, warmup=1, protocol="hackathon")
    assert result["ttft_s"] == {"mean": 3 * delay, "min": 2 * delay, "max": 4 * delay}  # the first is not counted
    assert result["tpot_s"]["mean"] == 0
    assert all(mel is not None for mel in heard)
    assert (result["new_tokens"], result["question"]) == (2, QUESTION)
    page = efficiency.comparison(result)
    assert "9.18" not in page
    told = "No figures of the hackathon beside it: audio_seconds 2, not 10; runs 3, not 100; warmup 1, not 10."
    assert told in page
    alike = efficiency.comparison({**result, **efficiency.PROTOCOL})
    assert "9.18" in alike
    assert "hardware is not told" in alike
    assert result["device"] in alike
    assert "mean (min to max) of 100 runs after 10" in alike


def test_the_hackathons_protocol_asks_the_test_prompt(golden, monkeypatch):
    model = golden("base").model
    monkeypatch.setattr(model, "test_prompts", {})
    with pytest.raises(UserError, match="has no asr"):
        efficiency.measure(model, seconds=2.0, runs=1, protocol="hackathon")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (10, 2)),
        (["protocol=hackathon"], (100, 10)),
        (["protocol=hackathon", "runs=7"], (7, 10)),
        (["warmup=0"], (10, 0)),
    ],
)
def test_runs_are_those_of_the_protocol_where_none_are_given(golden, tmp_path, monkeypatch, options, expected):
    called = {}
    monkeypatch.setattr(efficiency, "session", lambda _config: nullcontext())
    monkeypatch.setattr(efficiency, "load_model", lambda *_: golden("base").model)
    monkeypatch.setattr(efficiency, "measure", lambda _model, _settings, **given: called.update(given) or {})
    monkeypatch.setattr(efficiency, "comparison", lambda _result: "")
    options = ["run.device=cpu", "run.amp=False", *(f"evaluate.efficiency.{option}" for option in options)]
    efficiency.run_efficiency(load_config("configs/evaluate.yaml", options), tmp_path)
    assert (called["runs"], called["warmup"]) == expected
