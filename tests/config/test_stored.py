"""Secrets are never written down, told or taken over; a reference to the environment stays one; files of others ask
the environment for nothing."""

import pytest
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config import load_config, model_config
from salmonn.config.stored import SECRETS, options_without_secrets, require_literal, without_secrets, written_config

REFERENCE = "${oc.env:PLANTED}"


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    monkeypatch.setenv("PLANTED", "hf_planted")


def config_with(tmp_path, token):
    OmegaConf.save({"model": {"token": token}}, tmp_path / "c.yaml")
    return load_config(tmp_path / "c.yaml")


def test_a_token_of_the_environment_is_found_where_it_is_used_and_stays_a_reference_where_it_is_written(tmp_path):
    config = config_with(tmp_path, REFERENCE)
    assert config.model.token == model_config(config.model).token == "hf_planted"
    assert written_config(config)["model"]["token"] == REFERENCE
    assert without_secrets(OmegaConf.to_container(config))["model"]["token"] == ""
    assert load_config(tmp_path / "c.yaml", [f"model.token={REFERENCE}"]).model.token == "hf_planted"


@pytest.mark.parametrize("token", ["hf_planted", "${oc.env:NOT_THERE,hf_planted}", "${oc.decode:${oc.env:PLANTED}}"])
def test_a_token_in_plain_text_is_used_and_not_written(tmp_path, token):
    config = config_with(tmp_path, token)
    assert config.model.token == "hf_planted"
    assert written_config(config)["model"]["token"] == ""


def test_a_token_that_the_environment_lacks_is_told_when_the_config_is_read(tmp_path):
    with pytest.raises(UserError, match="NOT_THERE"):
        config_with(tmp_path, "${oc.env:NOT_THERE}")


@pytest.mark.parametrize(
    "option",
    [
        "model.token=hf_planted${", "model.token='hf_planted${'", "model={token: hf_planted", "model.token hf_planted",
        "model[token]=hf_planted${", "model=[{token: hf_planted}]", "model=[token, hf_planted]",
        "model.token.a=hf_planted",
        "model.token='hf_planted\n'",
        "model.token=hf_planted é",
        "run.hf_token=[hf_planted", "hf_token hf_planted", "run.wandb_api_key=hf_planted[", "OPENAI_KEY: hf_planted",
        "run={hf_token: hf_planted", "run.hub=[{apiKey: hf_planted", "model.token=${oc.env:hf_planted}",
        "run.seed=http://h/?token=hf_planted",
    ],
)  # fmt: skip
def test_no_message_repeats_a_token(option):
    with pytest.raises(UserError) as caught:
        load_config("configs/mini/stage1.yaml", [option])
    assert "hf_planted" not in str(caught.value)
    with pytest.raises(UserError, match="token") as caught:
        model_config({"token": ["hf_planted"]})
    assert "hf_planted" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'model:\n  token: "hf_planted\n  ckpt: x',
        "model:\n  token: hf_planted: x",
        "model:\n  token: [hf_planted",
        "model:\n\ttoken: hf_planted",
        "model: hf_planted",
        "model:\n - token: hf_planted",
        "model:\n  tokne: hf_planted",
        "token: hf_planted",
        "model: {token: hf_planted, token: hf_planted}",
    ],
)
def test_no_message_about_a_file_quotes_a_line_of_it(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        load_config(tmp_path / "c.yaml")
    assert "hf_planted" not in str(caught.value)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1" + ":59" * 3000, "9" * 5000])
def test_a_number_too_long_to_be_shown_is_told(tmp_path, number):
    (tmp_path / "c.yaml").write_text(f"run: {{seed: {number}}}")
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="--options"):
        load_config("configs/mini/stage1.yaml", [f"run.seed={number}"])


def test_where_a_file_is_no_yaml_is_told_by_line_and_column(tmp_path):
    (tmp_path / "c.yaml").write_text("run:\n  seed: [1\nmodel:\n")
    with pytest.raises(UserError, match=r"\(line 3, column "):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "token", "hf_token", "api_key", "wandb.api_key", "WANDB_API_KEY", "wandb_key", "password", "client-secret",
        "hfToken", "apiKey", "x-api-key", "OPENAI_KEY", "judge_key", "key", "private_key", "auth", "credentials", "pwd",
        "tokens", "hfTokens", "secretKey", "connection_string", "dbConnectionString", "AWS_ACCESS_KEY_ID", "apiKeys",
        "hub_token_read", "HFToken", "cookies", "sentry_dsn",
    ],
)  # fmt: skip
def test_secrets_of_other_programs_in_files_of_others_are_not_taken_over(name):
    config = {"run": {name: "hf_planted", "more": [{"deep": {name: ["hf_planted"]}}], "max_tokens": 3, "seed": 1}}
    kept = without_secrets(config, keep_references=True)
    assert kept["run"][name] == kept["run"]["more"][0]["deep"][name] == ""
    assert (kept["run"]["max_tokens"], kept["run"]["seed"]) == (3, 1)
    assert config["run"][name] == "hf_planted"  # what was read stays as it was


@pytest.mark.parametrize(
    "name",
    [
        "max_new_tokens",
        "maxNewTokens",
        "batch_tokens",
        "query_tokens",
        "special_tokens",
        "eos_token",
        "tokenizer",
        "monkey",
    ],
)
def test_what_counts_or_names_pieces_of_text_is_no_secret(name):
    assert without_secrets({"run": {name: "auto"}})["run"][name] == "auto"


@pytest.mark.parametrize(("name", "kept"), [("password", ""), ("db_pwd", ""), ("tokens", 12345), ("key", 12345)])
def test_a_number_may_be_a_password_and_no_token(name, kept):
    assert without_secrets({"run": {name: 12345}})["run"][name] == kept


def test_an_address_is_written_without_the_secrets_that_it_asks_with():
    address = "https://hub.example/a?version=1&X-Amz-Security-Token=hf_planted&apiKey=hf_planted#here"
    assert without_secrets({"run": {"url": address}})["run"]["url"] == (
        "https://hub.example/a?version=1&X-Amz-Security-Token=&apiKey=#here"
    )


def test_an_address_is_written_without_its_user_and_password():
    config = {
        "run": {"url": "see https://me:hf_planted@hub.example/v1", "list": ["s3://hf_planted@a/b", "a@b", "x://"]}
    }
    assert without_secrets(config)["run"] == {
        "url": "see https://hub.example/v1", "list": ["s3://a/b", "a@b", "x://"],
    }  # fmt: skip


def test_no_other_key_of_ours_is_taken_for_a_secret():
    plain = OmegaConf.to_container(load_config("configs/mini/stage1.yaml"))
    assert without_secrets(plain) == plain


def test_options_that_are_written_down_hold_no_secret():
    given = ["model.token=hf_planted", "run.seed=1", f"model.token={REFERENCE}", "model.token"]
    given += ["model={token: hf_planted, ckpt: x}", "model[token]=hf_planted", " model.token =hf_planted"]
    given += ["model={'token': hf_planted}", "model.token.x=hf_planted", "model.token hf_planted", "model.num_beams=2"]
    given += ["model.num_speech_query_token=2", "model={lora: false}"]
    assert options_without_secrets(given) == [
        "run.seed=1", "model.num_beams=2", "model.num_speech_query_token=2", "model={lora: false}",
    ]  # fmt: skip


def test_every_secret_is_a_key_of_the_schema():
    config = load_config("configs/mini/stage1.yaml")
    assert all(OmegaConf.select(config, key) == "" for key in SECRETS)


@pytest.mark.parametrize(
    "value",
    [
        REFERENCE,
        f"USER: {{}} {REFERENCE}",
        [REFERENCE],
        {"deep": [{"er": REFERENCE}]},
        "${oc.decode:x}",
        {REFERENCE: 1},
    ],
)
def test_what_another_file_asks_of_the_environment_is_refused(value):
    with pytest.raises(UserError, match="others"):
        require_literal({"key": value}, "x.pth")


def test_nesting_without_end_is_told():
    nested: dict = {}
    for _ in range(5000):
        nested = {"a": nested}
    endless: list = []
    endless.append(endless)
    for value in (nested, endless):
        with pytest.raises(UserError, match="deep"):
            require_literal({"key": value}, "x.pth")
    require_literal({"a": {"b": [1, 2.5, None, True, {"c": "USER: {}"}]}}, "x.pth")
