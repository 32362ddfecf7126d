"""Clips are encoded once and found again: same results, no stale or damaged entry, within the bound."""

import copy
import json

import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.data.collate import pad_wavs
from salmonn.evaluation.pipeline import session
from salmonn.model import encoder_cache
from salmonn.model import salmonn as model
from salmonn.model.encoder_cache import EncoderCache, fingerprint, folder_bytes
from salmonn.model.encoders import EncoderOutputs
from salmonn.training.dry_run import tiny_step
from salmonn.training.resume import changes_of_the_result
from salmonn.training.runner import Runner
from salmonn.training.stages import run_stages
from tests.fixtures.commands import json_lines
from tests.fixtures.golden import CASES
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

SECONDS = [0.4, 1.7, 3.3, 1.0]


def clips(*numbers: int) -> dict:
    """Some of four clips of noise of different lengths, as a batch."""
    wavs = [0.1 * torch.randn(int(16_000 * SECONDS[i]), generator=torch.Generator().manual_seed(i)) for i in numbers]
    raw_wav, padding_mask = pad_wavs(wavs)
    prompts = ["USER: <SpeechHere> Describe.\nASSISTANT:"] * len(numbers)
    texts = [f"sound {i}" for i in numbers]
    return {"raw_wav": raw_wav, "padding_mask": padding_mask, "text": texts, "prompts": prompts}


@pytest.fixture
def cached(golden, monkeypatch, tmp_path):
    """Gives a golden model a cache in a folder; the numbers of clips that its encoders hear are added to `heard`."""

    def give(case: str = "base", folder=tmp_path, max_bytes: float = 1e9):
        salmonn = golden(case).model
        cache = EncoderCache(folder, fingerprint(salmonn), max_bytes)
        cache.heard = []
        run_encoders = type(salmonn).run_encoders.__get__(salmonn)

        def counted(raw_wav, *rest):
            cache.heard.append(len(raw_wav))
            return run_encoders(raw_wav, *rest)

        monkeypatch.setattr(salmonn, "run_encoders", counted)
        monkeypatch.setattr(salmonn, "encoder_cache", cache)
        return salmonn, cache

    return give


def loss_and_gradients(salmonn, samples) -> list[torch.Tensor]:
    salmonn.zero_grad(set_to_none=True)
    loss = salmonn(samples)["loss"]
    loss.backward()
    gradients = [p.grad for p in salmonn.parameters() if p.grad is not None]
    salmonn.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


@torch.no_grad()
def embeds(salmonn, *numbers: int) -> torch.Tensor:
    samples = clips(*numbers)
    return salmonn.encode_speech(samples["raw_wav"], samples["padding_mask"])[0]


def entries(cache: EncoderCache) -> list:
    return sorted(path for path in cache.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_bit_for_bit_those_without_it(golden, cached, case):
    samples = clips(0, 1, 2)
    without = loss_and_gradients(golden(case).model, samples)
    salmonn, cache = cached(case)
    for _ in range(2):  # encoded and written, then read
        found = loss_and_gradients(salmonn, samples)
        assert len(found) == len(without) > 10
        assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))
    assert cache.heard == [3]


def test_only_clips_that_are_new_are_encoded_and_a_clip_that_comes_twice_once(golden, cached):
    without = embeds(golden("base").model, 2, 3, 0, 3)
    salmonn, cache = cached()
    embeds(salmonn, 0, 1, 2)
    torch.testing.assert_close(embeds(salmonn, 2, 3, 0, 3), without, rtol=0, atol=1e-5)
    assert cache.heard == [3, 1]
    assert len(entries(cache)) == 4


def test_other_audio_other_precision_and_another_length_are_encoded_anew(cached):
    salmonn, cache = cached()
    samples = clips(1)
    louder = samples["raw_wav"].clone()
    louder[0, 100] += 1e-3
    longer = torch.nn.functional.pad(samples["raw_wav"], (0, 1))
    with torch.no_grad():
        for _ in range(2):
            for raw_wav in (samples["raw_wav"], louder, longer):
                salmonn.encode_speech(raw_wav)
            with torch.autocast("cpu", torch.bfloat16):
                salmonn.encode_speech(samples["raw_wav"])
    assert cache.heard == [1, 1, 1, 1]


def test_entries_of_encoders_in_bfloat16_are_bfloat16_and_others_not_all(golden):
    """Autocast alone leaves Whisper's output, the larger one, in float32."""
    salmonn, wav = copy.deepcopy(golden("base").model), clips(1)["raw_wav"]

    def precisions(amp: bool) -> dict[str, torch.dtype]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            [row] = salmonn.run_encoders(wav, torch.tensor([wav.shape[1]])).rows()
        return {name: values.dtype for name, values in row.items()}

    assert precisions(amp=False) == {"speech": torch.float32, "audio": torch.float32}
    assert precisions(amp=True) == {"speech": torch.float32, "audio": torch.bfloat16}
    salmonn.speech_encoder.to(torch.bfloat16)
    salmonn.beats.to(torch.bfloat16)
    assert precisions(amp=True) == {"speech": torch.bfloat16, "audio": torch.bfloat16}


def test_the_fingerprint_changes_with_features_weights_and_settings(golden, monkeypatch):
    salmonn = golden("base").model
    whisper, beats, mel = salmonn.speech_encoder, salmonn.beats, salmonn.log_mel
    names = [fingerprint(salmonn)]
    for values in (whisper.layers[0].fc1.bias, beats.encoder.layer_norm.weight, mel.mel_filters[5]):
        kept = values.detach().clone()
        with torch.no_grad():
            values[3] += 1e-6
            names.append(fingerprint(salmonn))
            values.copy_(kept)
    with monkeypatch.context() as patch:
        patch.setitem(beats.cfg, "deep_norm", not beats.cfg["deep_norm"])
        names.append(fingerprint(salmonn))
    assert len(set(names)) == 5
    assert fingerprint(salmonn) == names[0]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    return content[:-1000] + bytes(1000)  # what a power cut may leave


@pytest.mark.parametrize("damage", [cut, zeroed, lambda _: b""], ids=["cut", "zeroed", "empty"])
def test_a_damaged_entry_is_encoded_again_told_once_and_replaced(cached, caplog, damage):
    salmonn, cache = cached()
    before = embeds(salmonn, 0, 1, 2)
    for path in entries(cache)[:2]:
        path.write_bytes(damage(path.read_bytes()))
    torch.testing.assert_close(embeds(salmonn, 0, 1, 2), before, rtol=0, atol=1e-5)
    assert caplog.text.count("is damaged") == 1
    embeds(salmonn, 0, 1, 2)
    assert cache.heard == [3, 2]


def test_no_bit_of_an_entrys_head_can_be_flipped_into_another_row(cached):
    salmonn, cache = cached()
    embeds(salmonn, 0)
    [path] = entries(cache)
    content, whole = path.read_bytes(), cache._read(path)
    head = 8 + int.from_bytes(content[:8], "little")
    for at in range(head):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            row = cache._read(path)
            assert row is None or (
                row.keys() == whole.keys() and all(torch.equal(row[name], whole[name]) for name in whole)
            ), (at, bit)


def test_the_bound_holds_and_what_is_there_is_found(cached, caplog, tmp_path):
    (tmp_path / "of_another_encoder").mkdir()
    (tmp_path / "of_another_encoder" / "entry").write_bytes(bytes(100_000))
    salmonn, cache = cached()
    embeds(salmonn, 0)
    bound = folder_bytes(tmp_path) * 2.2 - 100_000  # the file of another one, and two entries of like length
    salmonn, cache = cached(max_bytes=bound)
    for _ in range(2):
        for i in (0, 3, 2, 1):
            embeds(salmonn, i)
    assert cache.heard == [1, 1, 1, 1, 1]
    assert folder_bytes(tmp_path) <= bound
    assert caplog.text.count("is full") == 1


def test_what_another_run_adds_meanwhile_counts_for_the_bound(cached, tmp_path):
    salmonn, first = cached()
    embeds(salmonn, 0)
    first.max_bytes = 3.5 * folder_bytes(tmp_path)
    second = EncoderCache(tmp_path, first.folder.name, first.max_bytes)
    for cache, clip, n_entries in ((second, 3, 2), (first, 1, 3), (second, 2, 3)):
        salmonn.encoder_cache = cache
        embeds(salmonn, clip)
        assert len(entries(first)) == n_entries


def test_each_of_several_ranks_leaves_room_for_what_the_others_write(cached, tmp_path):
    salmonn, alone = cached()
    embeds(salmonn, 0)
    cache = EncoderCache(tmp_path, alone.folder.name, 4.5 * folder_bytes(tmp_path), writers=3)
    salmonn.encoder_cache = cache
    embeds(salmonn, 3)  # and two by the others
    assert len(entries(cache)) == 2
    embeds(salmonn, 1)
    assert len(entries(cache)) == 2


def test_a_full_disk_is_told_once_and_training_goes_on(golden, cached, caplog, monkeypatch):
    def no_room(_row, path, _metadata):
        path.write_bytes(b"half an ent")
        raise encoder_cache.SafetensorError("I/O error: No space left on device (os error 28)")

    without = embeds(golden("base").model, 0, 1)
    salmonn, cache = cached()
    monkeypatch.setattr(encoder_cache, "save_file", no_room)
    for _ in range(2):
        torch.testing.assert_close(embeds(salmonn, 0, 1), without, rtol=0, atol=0)
    assert entries(cache) == []
    assert caplog.text.count("No space left") == 1


def test_two_runs_may_encode_the_same_clip_at_the_same_time(golden, cached):
    without = embeds(golden("base").model, 0, 1)
    salmonn, first = cached()
    second = EncoderCache(first.root, first.folder.name, 1e9)

    def meanwhile(raw_wav, lengths):
        second.encode(raw_wav, lengths, salmonn.run_encoders, salmonn.device)
        return salmonn.run_encoders(raw_wav, lengths)

    samples = clips(0, 1)
    raw_wav, lengths = salmonn._clean_audio(samples["raw_wav"], samples["padding_mask"])
    with torch.no_grad():
        first.encode(raw_wav, lengths, meanwhile, salmonn.device)
    assert len(entries(first)) == 2
    assert torch.equal(embeds(salmonn, 0, 1), without)
    assert first.heard == [2, 2]


def test_a_batch_is_taken_apart_and_put_together_again():
    padding = torch.tensor([[False, False, True], [False, False, False]])
    encoded = EncoderOutputs(torch.randn(2, 5, 4), torch.randn(2, 3, 6).masked_fill(padding[..., None], 0.0), padding)
    assert [row["audio"].shape[0] for row in encoded.rows()] == [2, 3]
    again = EncoderOutputs.of_rows(encoded.rows(), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(encoded, again, strict=True))


# ---- in a run


@pytest.fixture
def options(mini_world, tmp_path, monkeypatch):
    """Of a run of two passes over 8 clips with texts, and 4 to validate on, without dropout."""
    monkeypatch.chdir(ROOT)
    for split, n in (("train", 8), ("valid", 4)):
        whole = json.loads((mini_world / f"ann/stage1_{split}.json").read_text())["annotation"]
        readable = [entry for entry in whole if "broken" not in entry["path"]]
        (tmp_path / f"{split}.json").write_text(json.dumps({"annotation": readable[:n]}))
    return [
        *mini_options(mini_world, tmp_path),
        *(f"datasets.{split}_ann_path={tmp_path}/{split}.json" for split in ("train", "valid")),
        "datasets.integrity=decode", "run.epoch_based=True", "run.batch_size_train=4", "run.batch_size_eval=2",
        "run.optims.max_epoch=2", "run.optims.warmup_steps=0", "run.log_freq=1", "run.overwrite=True",
    ]  # fmt: skip


def train(options, heard: list, monkeypatch) -> list[dict]:
    """Runs without dropout; returns its log. What the encoders hear is added to `heard`, epoch by epoch."""
    runner = Runner(load_config("configs/mini/stage1.yaml", options))
    runner.prepare()
    runner.model.eval()
    with monkeypatch.context() as patch:
        patch.setattr(runner.model, "train", lambda *_: runner.model)
        kaldi_fbank = model.kaldi_fbank
        patch.setattr(
            model, "kaldi_fbank", lambda wav: heard.append((runner.progress.epoch, len(wav))) or kaldi_fbank(wav)
        )
        assert runner.train()
    runner.close()
    return json_lines(runner.folder / "log.jsonl")


def test_the_second_epoch_of_a_run_calls_no_encoder_and_learns_the_same(options, tmp_path, monkeypatch, capsys):
    cache = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=0.5"]
    with_it, without_it = [], []
    log = train([*options, *cache], with_it, monkeypatch)
    plain = train(options, without_it, monkeypatch)
    n_clips = sum(n for epoch, n in without_it if epoch == 0)
    assert {epoch for epoch, _ in with_it} == {0}
    assert sum(n for _, n in with_it) <= n_clips
    assert [line["step"] for line in log] == [line["step"] for line in plain]
    for ours, theirs in zip(log, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    used = folder_bytes(tmp_path / "cache")
    assert f"encoder cache: {n_clips} clips found, 0 encoded, {used / 1e9:.3g} of 0.5 GB" in capsys.readouterr().err


def test_a_dry_run_leaves_the_cache_alone(options, tmp_path):
    cache = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=0.5"]
    assert "loss" in tiny_step(load_config("configs/mini/stage1.yaml", [*options, *cache]))
    assert not (tmp_path / "cache").exists()


def test_more_than_the_disk_has_is_refused_before_anything_is_read(options, tmp_path):
    cache = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=1e6"]
    with pytest.raises(UserError, match="this disk has"):
        run_stages([load_config("configs/mini/stage1.yaml", [*options, *cache])])
    evaluation = load_config("configs/mini/evaluate.yaml", cache)
    with pytest.raises(UserError, match="this disk has"), session(evaluation):
        pass


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.freeze_whisper=False", "model.freeze_whisper = False does not go with run.encoder_cache"),
        ("model.freeze_beats=False", "model.freeze_beats = False does not go with run.encoder_cache"),
        ("run.encoder_cache_gb=0", "run.encoder_cache_gb = 0.0: must be more than 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(option, told):
    path = ROOT / "configs/mini/stage1.yaml"
    with pytest.raises(UserError, match=told):
        load_config(path, ["run.encoder_cache=cache", option])
    if "freeze" in option:
        load_config(path, [option])  # without a cache


def test_the_cache_makes_no_other_run():
    assert changes_of_the_result(["run.encoder_cache:  -> cache", "run.encoder_cache_gb: 20 -> 30"]) == []
