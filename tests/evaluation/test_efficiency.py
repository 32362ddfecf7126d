"""Time to first token, time per token and memory, through the real generate path of the golden tiny model."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from salmonn.common import device
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.evaluation import efficiency


def of_length(new_tokens: int, **settings):
    return efficiency.of_length(generate_config(settings), new_tokens)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_every_forced_token_has_its_time(golden, num_beams):
    model = golden("base").model
    times = efficiency.time_tokens(model, of_length(17, num_beams=num_beams), 2.0)
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
        assert len(efficiency.time_tokens(model, of_length(8, num_beams=1), 2.0)) == 8
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
        patch.setattr(model, "encode_clips", slowed(model.encode_clips))
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
    monkeypatch.setattr(efficiency, "time_tokens", lambda *args: calls.append(original(*args)) or calls[-1])
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
    assert "9.18" in page
    assert "another machine" in page
    assert len({line.count("|") for line in page.split("\n\n")[0].splitlines()}) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"seconds": 31.0}, "hears 1 to 30 s"), ({"new_tokens": 1}, "2 tokens"), ({"runs": 0}, "0 runs")],
)
def test_what_cannot_be_measured_is_refused(golden, wrong, told):
    with pytest.raises(UserError, match=told):
        efficiency.measure(golden("base").model, **wrong)
