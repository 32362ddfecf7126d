"""Validation: the right audio beside another clip's, and what is said of a model that does not listen."""

import contextlib

import torch

from salmonn.training.validation import report_listening, shuffle_partners, validate


def test_shuffled_control_pairs_each_clip_with_another_one():
    assert shuffle_partners(["a", "b", "c"]) == ([0, 1, 2], [1, 2, 0])
    assert shuffle_partners(["a", "a", "b", "b"]) == ([0, 1, 2, 3], [2, 2, 0, 0])  # never the same recording
    assert shuffle_partners(["a", "a"]) == ([], [])
    assert shuffle_partners([]) == ([], [])


class HearsItsNumber:
    """A model whose loss is 0 when text and audio belong together and 1 when not."""

    device, train_prompts = torch.device("cpu"), {}
    lending = contextlib.nullcontext

    def eval(self):
        return self

    def encode_clips(self, raw_wav, _padding_mask):
        return [*raw_wav]

    def answer_loss(self, embeds, _prompts, texts):
        wrong = torch.tensor([float(e[0].item() != float(t)) for e, t in zip(embeds, texts, strict=True)])
        return {"sample_loss": wrong, "sample_correct": 1 - wrong, "sample_total": torch.ones(len(texts))}


def test_validation_scores_the_right_audio_and_the_shuffled():
    class Ignored:
        def add(self, _samples, judged):
            pass

    def batch(*numbers):
        wav = torch.tensor([[float(n)] for n in numbers])
        texts = [str(n) for n in numbers]
        tasks = ["odd" if n % 2 else "even" for n in numbers]
        return {"raw_wav": wav, "padding_mask": wav > 99, "text": texts, "id": texts, "task": tasks, "unreadable": []}

    result = validate(HearsItsNumber(), [batch(1, 2), batch(3)], Ignored())
    tasks = result.pop("tasks")
    assert result == {"loss": 0.0, "accuracy": 1.0, "loss_shuffled": 1.0, "accuracy_shuffled": 0.0}
    assert tasks == {"even": result, "odd": result}
    alone = validate(HearsItsNumber(), [batch(3)], Ignored())
    assert alone["loss_shuffled"] is None


def test_a_model_that_does_not_listen_is_called_out(caplog):
    deaf = {"loss": 3.05, "accuracy": 0.4, "loss_shuffled": 3.06, "accuracy_shuffled": 0.4}
    deaf["tasks"] = {"asr": dict(deaf)}
    report_listening(deaf, 0, past_warmup=False)
    assert "NOT LISTENING" not in caplog.text  # it may still learn to
    report_listening(deaf, 0, past_warmup=True)
    assert "NOT LISTENING" in caplog.text
    caplog.clear()
    report_listening({**deaf, "loss": 1.0}, 0, past_warmup=True)
    assert "NOT LISTENING" not in caplog.text
    report_listening({**deaf, "loss_shuffled": None, "accuracy_shuffled": None}, 0, past_warmup=True)
    assert "run.batch_size_eval" in caplog.text
