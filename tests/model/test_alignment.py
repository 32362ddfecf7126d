"""Stage 0: CTC over the LLM's input embeddings, for LLMs of every family, in the windows that a clip fills."""

import json
import logging
import shutil

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.config.schema import RunConfig
from salmonn.model import checkpoint
from salmonn.model.alignment import (
    Aligner,
    CTCModel,
    build_model,
    ctc_losses,
    draw_candidates,
    greedy_tokens,
    model_class,
    set_ctc_weight,
)
from salmonn.model.llm import load_embeddings
from salmonn.model.llm_input import tokenize
from salmonn.model.meta_model import build_meta_model
from salmonn.model.qformer import filled_windows
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import FAMILIES, samples_of, write_llm

WINDOW = 0.04  # s: two frames, so that the texts' tokens find room


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Loader of the aligner of a family's tiny LLM with the golden Whisper and BEATs, each once."""
    folder, loaded = tmp_path_factory.mktemp("llms"), {}

    def load(name: str) -> Aligner:
        if name not in loaded:
            torch.manual_seed(0)
            short = {"ckpt": "", "second_per_window": WINDOW, "second_stride": WINDOW}
            section = {**OmegaConf.to_container(golden_config("base")), **short, **write_llm(folder / name, name)}
            loaded[name] = Aligner.from_config(section)
        return loaded[name].eval()

    return load


def randomised(model: Aligner) -> Aligner:
    """With a blank and a scale that are not those of the beginning."""
    torch.manual_seed(3)
    torch.nn.init.normal_(model.ctc_blank.data, std=0.1)
    model.ctc_log_scale.data.fill_(0.7)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_pytorchs_ctc_loss_on_the_full_vocabulary(build, name):
    model = randomised(build(name))
    model.n_negatives = 10**6
    samples = samples_of(model, [0, 1])
    with torch.no_grad():
        result = model(samples, verbose=True)
        embeds, filled = model.encode_speech(samples["raw_wav"], samples["padding_mask"])
        words = model.llama_model.get_input_embeddings()
        table = torch.cat([words(torch.arange(words.weight.shape[0])), model.ctc_blank[None]])
        log_probs = ((embeds @ table.t()) * model.ctc_log_scale.exp() / model.embedding_norm).log_softmax(-1)
    ids = [model.tokenizer(text, add_special_tokens=False).input_ids for text in samples["text"]]
    expected = F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([token for of_text in ids for token in of_text]),
        filled.sum(dim=1),
        torch.tensor([len(i) for i in ids]),
        blank=len(table) - 1,
        reduction="sum",
    )
    total = sum(map(len, ids))
    assert (result["total"], result["cut"]) == (total, 0)
    torch.testing.assert_close(result["loss"], expected / total, rtol=1e-5, atol=1e-5)


def test_only_the_batchs_tokens_and_the_random_ones_are_candidates():
    torch.manual_seed(0)
    candidates, log_weights = draw_candidates([[5, 900, 5], [], [7]], n_negatives=20, vocabulary_size=1000)
    assert {5, 7, 900} <= set(candidates.tolist())
    assert len(candidates) <= 23
    assert candidates.tolist() == sorted(set(candidates.tolist()))
    assert draw_candidates([[5]], n_negatives=0, vocabulary_size=1000).ids.tolist() == [5]
    whole = draw_candidates([[5]], n_negatives=10, vocabulary_size=10)
    assert whole.ids.tolist() == list(range(10))
    assert not whole.log_weights.any()
    assert {float(w) for w in log_weights[torch.isin(candidates, torch.tensor([5, 7, 900]))]} == {0.0}


def test_drawn_candidates_weigh_as_much_as_the_whole_vocabulary():
    torch.manual_seed(0)
    logits = torch.randn(500)
    draws = [draw_candidates([[3, 4]], n_negatives=50, vocabulary_size=500) for _ in range(400)]
    sums = torch.stack([(logits[draw.ids] + draw.log_weights).exp().sum() for draw in draws])
    torch.testing.assert_close(sums.mean(), logits.exp().sum(), rtol=0.03, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_layers_the_llm_has_the_same_input_embeddings(build, name):
    aligner = build(name)
    whole = SALMONN.from_config(aligner.config).llama_model
    ids = torch.arange(whole.get_input_embeddings().weight.shape[0])
    assert torch.equal(aligner.llama_model.get_input_embeddings()(ids), whole.get_input_embeddings()(ids))
    assert not any(".layers." in parameter for parameter, _ in aligner.llama_model.named_parameters())


def test_embeddings_of_a_checkpoint_that_is_quantised_already_need_no_library(build, tmp_path):
    config = build("llama3.2").config
    shutil.copytree(config.llama_path, tmp_path / "llm")
    settings = json.loads((tmp_path / "llm/config.json").read_text())
    how = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "llm/config.json").write_text(json.dumps({**settings, "quantization_config": how}))
    llm = load_embeddings(OmegaConf.merge(config, {"llama_path": str(tmp_path / "llm")}), torch.device("cpu"))
    expected = build("llama3.2").llama_model.get_input_embeddings().weight
    assert torch.equal(llm.get_input_embeddings().weight, expected)


def test_embeddings_that_the_files_lack_are_refused(build, tmp_path):
    config = model_config({**OmegaConf.to_container(build("llama3.2").config), "llama_path": str(tmp_path)})
    with pytest.raises(UserError, match=r"model\.llama_path"):
        load_embeddings(config, torch.device("cpu"))


def test_gradients_reach_the_connector_the_blank_and_the_scale_and_nothing_else(build):
    model = build("llama3.2").train()
    model.zero_grad()
    model(samples_of(model, [0, 1]))["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    own = {"speech_query_tokens", "ctc_blank", "ctc_log_scale"}
    inside = ("ln_speech.", "ln_audio.", "speech_Qformer.", "speech_llama_proj.")
    assert own <= moved
    assert all(name in own or name.startswith(inside) for name in moved)
    assert {name.split(".")[0] for name in moved - own} == {prefix[:-1] for prefix in inside}


def test_windows_in_which_the_clip_is_over_are_not_used(build):
    assert filled_windows(16_000, stride=17, most=88) == 3  # 50 frames: the third window ends behind them
    assert filled_windows(51 * 320, stride=17, most=88) == 3
    assert filled_windows(51 * 320 + 1, stride=17, most=88) == 4
    assert filled_windows(31 * 16_000, stride=17, most=88) == 88
    model = build("llama3.2")
    samples = samples_of(model, [0, 1])  # of 1.3 and 2.9 s
    with torch.no_grad():
        filled = model.encode_clips(samples["raw_wav"], samples["padding_mask"])
        model.config.only_filled_windows = False
        whole = model.encode_clips(samples["raw_wav"], samples["padding_mask"])
        model.config.only_filled_windows = True
    frames = round(WINDOW * 50)
    lengths = [len(clip) for clip in filled]
    assert lengths == [-(-65 // frames), -(-145 // frames)]  # 20 ms each
    for clip, of_30_s in zip(filled, whole, strict=True):
        assert len(clip) < len(of_30_s)
        torch.testing.assert_close(clip, of_30_s[: len(clip)])
    log_probs = torch.randn(2, max(lengths), 6).log_softmax(-1)
    other = log_probs.clone()
    other[0, lengths[0] :] = torch.randn(max(lengths) - lengths[0], 6).log_softmax(-1)
    targets = [torch.tensor([1, 2]), torch.tensor([3])]
    assert torch.equal(*(ctc_losses(x, lengths, targets).losses for x in (log_probs, other)))


def test_transcripts_longer_than_their_clip_are_counted_and_teach_nothing(build):
    log_probs = torch.randn(2, 3, 6).log_softmax(-1)
    losses, fits = ctc_losses(log_probs, [3, 3], [torch.tensor([1, 1, 2]), torch.tensor([1, 2, 1])])
    assert fits == [False, True]  # the two equal ones want a blank between them
    assert losses[0] == 0 < losses[1]
    model = build("llama3.2")
    samples = samples_of(model, [0, 1])
    samples["text"][1] = "the rain falls " * 100
    result = model(samples, verbose=True)
    assert result["cut"] == 1
    assert result["total"] == len(tokenize(model.tokenizer, samples["text"][:1])[0])
    samples["text"][0] = samples["text"][1]
    nothing = model(samples, verbose=True)
    assert (nothing["loss"], nothing["total"], nothing["cut"]) == (0, 1, 2)


def test_greedy_tokens_merge_repetitions_and_drop_blanks():
    columns = torch.tensor([4, 1, 1, 4, 1, 2, 2, 4])
    assert greedy_tokens(F.one_hot(columns, 5).float()) == [1, 1, 2]


@pytest.mark.parametrize("name", FAMILIES)
def test_validation_counts_what_the_likeliest_tokens_say(build, name):
    model = randomised(build(name))
    text = "a red dog runs near the house"
    ids = tokenize(model.tokenizer, [text])[0]
    words = model.llama_model.get_input_embeddings()
    with torch.no_grad():
        size = words(torch.tensor(ids)).norm(dim=-1).max()
        model.ctc_blank.mul_(size / model.ctc_blank.norm())
        spelled = torch.stack([row for i in ids for row in (words(torch.tensor(i)), model.ctc_blank)])
        result = model.ctc_scores([spelled, -spelled], [text, text])
    assert result["sample_fits"].tolist() == [1, 1]
    assert result["sample_total"].tolist() == [len(ids)] * 2
    assert result["words"].tolist() == [7, 7]
    assert result["word_errors"][0] == 0
    assert result["sample_correct"][0] == len(ids)
    assert result["word_errors"][1] > 0
    assert result["sample_loss"][0] < result["sample_loss"][1]


# ---- from stage 0 to stage 1


@pytest.fixture(scope="module")
def stage0(build, tmp_path_factory):
    """A checkpoint of stage 0."""
    model, path = randomised(build("llama3.2")), tmp_path_factory.mktemp("stage0") / "stage0.pth"
    save_checkpoint(path, model)
    return path


def test_stage_1_takes_the_connector_and_says_that_lora_starts_anew(build, stage0, caplog):
    aligner = randomised(build("llama3.2"))
    section = OmegaConf.merge(aligner.config, {"lora": True, "ckpt": str(stage0)})
    with caplog.at_level(logging.INFO, "salmonn"):
        model = SALMONN.from_config(section)
    assert [r.message for r in caplog.records if "LoRA" in r.message] == [
        f"{stage0} is of stage 0: the connector goes on from it, LoRA starts anew"
    ]
    theirs = checkpoint.own_parameters(aligner)
    ours = checkpoint.own_parameters(model)
    assert theirs.keys() - ours.keys() == {"ctc_blank", "ctc_log_scale"}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if name in ours)
    assert all("lora_" in name for name in ours.keys() - theirs.keys())
    assert not any(p.any() for name, p in ours.items() if "lora_B" in name)
    meta = build_meta_model(section)
    checkpoint.require_fit(meta, checkpoint.read(stage0)["model"], stage0)  # known before the model is loaded


def test_what_else_is_missing_or_too_much_is_still_refused(build, stage0):
    parameters = checkpoint.read(stage0)["model"]
    model = SALMONN.from_config(OmegaConf.merge(build("llama3.2").config, {"lora": True}))

    def refused(change, told):
        content = dict(parameters)
        change(content)
        with pytest.raises(UserError, match=told) as error:
            checkpoint.take_parameters(model, content, "x.pth")
        return str(error.value)

    message = refused(lambda c: c.pop("ln_speech.weight"), "missing: ln_speech.weight")
    assert "lora" not in message
    refused(lambda c: c.update(other=torch.zeros(1)), "unexpected: other")
    without_mark = {name: value for name, value in parameters.items() if not name.startswith("ctc_")}
    with pytest.raises(UserError, match=r"missing: .*lora_A"):
        checkpoint.take_parameters(model, without_mark, "x.pth")
    half = {name: value for name, value in parameters.items() if name != "ctc_blank"}
    with pytest.raises(UserError, match=r"missing: ctc_blank"):
        checkpoint.take_parameters(build("llama3.2"), half, "x.pth")


# ---- beside the answer


@pytest.fixture(scope="module")
def with_ctc(build):
    """A whole model that learns by CTC beside answering."""
    torch.manual_seed(0)
    model = CTCModel.from_config(OmegaConf.merge(build("llama3.2").config, {"lora": True, "lora_dropout": 0.0}))
    return randomised(model).eval()


def test_the_loss_beside_the_answer_is_that_of_stage_0_on_the_clips_whose_text_follows_the_audio(build, with_ctc):
    samples = samples_of(with_ctc, [0, 1])
    samples["task"] = ["asr", "audiocaption"]
    samples["prompts"] = ["USER: <Speech><SpeechHere></Speech> what?\nASSISTANT:"] * 2
    with_ctc.n_negatives = 10**6  # nothing is drawn
    aligner = build("llama3.2")
    aligner.n_negatives = 10**6
    checkpoint.take_parameters(
        aligner, {k: v for k, v in checkpoint.own_values(with_ctc).items() if "lora" not in k}, ""
    )
    first = {key: value[:1] for key, value in samples.items()}
    with torch.no_grad():
        clips = with_ctc.encode_clips(samples["raw_wav"], samples["padding_mask"])
        answers = with_ctc.answer_loss(clips, samples["prompts"], samples["text"])
        spelled = aligner(first)["loss"]
        with_ctc.ctc_weight = 0.25
        both = with_ctc(samples, verbose=True)
        torch.testing.assert_close(both["loss"], answers["loss"] + 0.25 * spelled)
        torch.testing.assert_close(with_ctc(samples)["loss"], both["loss"])
        assert both["total"] == answers["total"]
        samples["task"] = ["phone_recognition", "audiocaption"]
        torch.testing.assert_close(with_ctc(samples)["loss"], answers["loss"])


def test_every_parameter_has_a_gradient_also_where_nothing_is_spelled(with_ctc):
    samples = samples_of(with_ctc, [0, 1])
    samples["task"] = ["audiocaption", "audiocaption"]
    with_ctc.ctc_weight = 0.25
    with_ctc.zero_grad()
    with_ctc(samples)["loss"].backward()
    assert all(p.grad is not None for p in with_ctc.parameters() if p.requires_grad)
    assert not with_ctc.ctc_blank.grad.any()


def test_the_weight_falls_in_a_straight_line_to_nothing(with_ctc):
    run = OmegaConf.structured(RunConfig(ctc_weight=0.4, ctc_until=0.5))
    assert model_class(run) is CTCModel
    weights = []
    for share in (0.0, 0.25, 0.5, 0.9):
        set_ctc_weight(with_ctc, run, share)
        weights.append(with_ctc.ctc_weight)
    assert weights == pytest.approx([0.4, 0.2, 0, 0])


def test_it_goes_on_from_stage_0_or_starts_anew_and_leaves_nothing_behind(build, with_ctc, stage0, caplog):
    theirs = checkpoint.read(stage0)["model"]
    with caplog.at_level(logging.INFO, "salmonn"):
        checkpoint.take_parameters(with_ctc, theirs, stage0)
    assert "LoRA starts anew" in caplog.text
    assert torch.equal(with_ctc.ctc_blank, theirs["ctc_blank"])
    plain = SALMONN.from_config(OmegaConf.merge(build("llama3.2").config, {"lora": True}))
    checkpoint.take_parameters(plain, checkpoint.own_values(with_ctc), "x.pth")  # after it: no CTC any more
    checkpoint.take_parameters(with_ctc, checkpoint.own_values(plain), "x.pth")  # which starts anew
    assert torch.equal(with_ctc.ctc_blank, theirs["ctc_blank"])
    incomplete = {
        k: v
        for k, v in checkpoint.own_values(with_ctc).items()
        if not k.endswith("0.self_attn.q_proj.lora_A.default.weight")
    }
    assert len(incomplete) < len(checkpoint.own_values(with_ctc))
    with pytest.raises(UserError, match=r"missing: .*lora_A"):
        checkpoint.take_parameters(plain, incomplete, "x.pth")


# ---- what is asked for


def test_the_kind_of_model_follows_the_objective(build):
    run = OmegaConf.structured(RunConfig(objective="ctc", ctc_negatives=7))
    assert model_class(run) is Aligner
    assert model_class(OmegaConf.structured(RunConfig())) is SALMONN
    built = build_model(build("llama3.2").config, run, torch.device("cpu"))
    assert built.n_negatives == 7


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("run.ctc_tasks=[]", "run.ctc_tasks is empty"),
        ("run.ctc_negatives=-1", "run.ctc_negatives = -1"),
        ("run.objective=align", "choose one of answer, ctc"),
        ("model.window_level_Qformer=False", "no order in one window"),
        ("model.freeze_whisper=False", "it trains the connector alone"),
    ],
)
def test_what_cannot_be_aligned_is_refused(option, told):
    with pytest.raises(UserError, match=told):
        load_config("configs/mini/stage0.yaml", ["run.encoder_cache=", option])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("run.objective=ctc", "no other loss beside which it could stand"),
        ("run.ctc_tasks=[]", "run.ctc_tasks is empty"),
        ("model.window_level_Qformer=False", "no order in one window"),
        ("run.ctc_weight=-1", "run.ctc_weight = -1"),
        ("run.ctc_until=0", "run.ctc_until = 0"),
    ],
)
def test_what_cannot_be_spelled_beside_the_answer_is_refused(option, told):
    with pytest.raises(UserError, match=told):
        load_config("configs/mini/stage1.yaml", ["run.ctc_weight=0.3", option])
