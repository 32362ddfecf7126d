"""`run.shard_llm`: ranks that each hold a share of the LLM train, validate and answer as one that holds all of it."""

import json
from pathlib import Path

import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.model import checkpoint
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

# Runs Runner without dropout and writes down what this rank holds of the LLM's blocks, in bytes.
RUN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from salmonn.common import distributed
from salmonn.config import load_config
from salmonn.training.runner import Runner

def held(parameter):
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return own.untyped_storage().nbytes()

runner = Runner(load_config("configs/mini/stage1.yaml", sys.argv[1:]))
runner.prepare()
runner.model.eval()
runner.model.train = lambda mode=True: runner.model
blocks = runner.model._causal_lm().get_decoder().layers
frozen = sum(held(p) for p in blocks.parameters() if not p.requires_grad)
runner.train()
after = sum(held(p) for p in blocks.parameters() if not p.requires_grad)
Path(runner.folder, f"held{{distributed.rank()}}").write_text(f"{{frozen}} {{after}}")
runner.close()
distributed.shutdown()
"""


@pytest.fixture
def train(plain_options, tmp_path):
    """Train as many ranks, 4 samples a step in all, in a folder of this name; returns what each rank held."""
    (tmp_path / "run.py").write_text(RUN)

    def run(name: str, ranks: int, *options: str) -> list[int]:
        fixed = [f"run.exp_name={name}", f"run.batch_size_train={4 // ranks}", "run.iters_per_epoch=2"]
        fixed += [
            "run.optims.init_lr=0",
            "run.optims.min_lr=0",
        ]  # Adam begins with signs, which rounding may turn
        result = run_command(str(tmp_path / "run.py"), *plain_options, *fixed, *options, ranks=ranks)
        assert result.returncode == 0, result.stderr
        held = [(tmp_path / name / f"held{rank}").read_text().split() for rank in range(ranks)]
        assert all(before == after for before, after in held)
        return [int(before) for before, _ in held]

    return run


def outcome(folder: Path) -> tuple[list[float], torch.Tensor, set[str]]:
    """Losses of training and validation, the averaged gradients, and the names in the checkpoint."""
    lines = json_lines(folder / "log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]  # the control's partners depend on the ranks
    content = checkpoint.read(folder / "checkpoint_last.pth")
    gradients = [values["exp_avg"].flatten() for values in content["optimizer"]["state"].values()]
    return losses, torch.cat(gradients).double(), set(content["model"])


@pytest.mark.parametrize("options", [(), ("model.gradient_checkpointing=True", "run.accum_grad_iters=2")])
def test_shares_give_the_loss_and_the_gradients_of_the_whole(train, tmp_path, options):
    """1 rank x 4 samples, 2 x 2 and 4 x 1, through two steps and a validation, of which ranks have unequal parts."""
    [whole] = train("whole", 1, *options)
    losses, gradients, names = outcome(tmp_path / "whole")
    for ranks in (2, 4):
        shares = train(f"shared{ranks}", ranks, "run.shard_llm=True", *options)
        assert all(share == pytest.approx(whole / ranks, rel=0.01) for share in shares)
        found = outcome(tmp_path / f"shared{ranks}")
        assert found[0] == pytest.approx(losses, rel=1e-6)
        assert (found[1] - gradients).norm() < 1e-6 * gradients.norm()
        assert found[2] == names


def test_an_llm_in_8_bits_is_shared_too(train, tmp_path):
    [whole] = train("whole", 1, "model.llm_quantization=int8")
    shares = train("shared", 2, "model.llm_quantization=int8", "run.shard_llm=True")
    assert all(share == pytest.approx(whole / 2, rel=0.01) for share in shares)
    (losses, gradients, _), (shared_losses, shared_gradients, _) = (outcome(tmp_path / n) for n in ("whole", "shared"))
    assert shared_losses == pytest.approx(losses, rel=1e-4)  # a batch is cut otherwise, and rounding steps are 1/127
    assert torch.nn.functional.cosine_similarity(shared_gradients, gradients, dim=0) > 0.9999


def test_a_run_goes_on_with_shares_and_without(train, tmp_path):
    """Two epochs of two steps: begun by one rank that holds all, gone on by two with shares, and the other way."""
    train("whole", 1, "run.optims.max_epoch=2")
    for name, first, second in (("to_shares", 1, 2), ("to_whole", 2, 1)):
        for ranks, epochs in ((first, 1), (second, 2)):
            train(name, ranks, f"run.optims.max_epoch={epochs}", f"run.shard_llm={ranks > 1}")
        losses, gradients, names = outcome(tmp_path / name)
        expected = outcome(tmp_path / "whole")
        assert losses == pytest.approx(expected[0], rel=1e-6)
        assert (gradients - expected[1]).norm() < 1e-6 * expected[1].norm()
        assert names == expected[2]


@pytest.fixture
def asked(mini_world, tmp_path) -> list[str]:
    """Options of a model that is asked, and three clips, so that two ranks have a different number of them."""
    entries = json.loads((mini_world / "ann/stage1_valid.json").read_text())["annotation"][:3]
    (tmp_path / "three.json").write_text(json.dumps({"annotation": entries}))
    return [*mini_options(mini_world, tmp_path), "model.ckpt=", "generate.max_new_tokens=8", "run.batch_size_eval=1"]


@pytest.mark.parametrize("beams", [1, 4])
def test_ranks_with_shares_answer_a_set_as_one_that_holds_all(asked, tmp_path, beams):
    answers = []
    for ranks in (1, 2):
        options = [f"run.shard_llm={ranks > 1}", f"generate.num_beams={beams}"]
        options += [f"evaluate.results_dir={tmp_path}/{ranks}"]
        command = ["evaluate.py", "--cfg-path", "configs/mini/evaluate.yaml", "--mode", "generate"]
        command += ["--ann", f"{tmp_path}/three.json", "--options", *asked, *options]
        result = run_command(*command, ranks=ranks)
        assert result.returncode == 0, result.stderr
        lines = json_lines(tmp_path / str(ranks) / "generate_three/predictions.jsonl")
        answers.append([line["text"] for line in lines])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def chat(world: Path) -> list[str]:
    clip = next((world / "audio/speech").glob("test_*.wav"))
    command = ["-m", "salmonn.chat", "--cfg-path", "configs/mini/decode.yaml"]
    return [*command, "--audio", str(clip), "--task", "asr", "--options"]


def test_one_rank_talks_and_the_others_lend_their_shares(asked, mini_world):
    spoken = []
    for ranks in (1, 2):
        result = run_command(*chat(mini_world), *asked, f"run.shard_llm={ranks > 1}", ranks=ranks)
        assert result.returncode == 0, result.stderr
        spoken.append(result.stdout)
    assert spoken[0] == spoken[1]
    assert spoken[0].strip()


def test_one_process_alone_says_that_it_shares_with_nobody(asked, mini_world):
    result = run_command(*chat(mini_world), *asked, "run.shard_llm=True")
    assert result.returncode == 0, result.stderr
    assert "run.shard_llm = True, but this is one process" in result.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.llm_quantization=nf4", "model.llm_quantization = nf4"),
        ("model.llm_quantization=8bit", "model.llm_quantization = 8bit"),
        ("model.low_resource=True", "model.llm_quantization = 8bit"),
        ("run.objective=ctc", "run.objective = ctc"),
        ("run.compile=True", "run.compile = True"),
    ],
)
def test_what_cannot_be_shared_is_refused(option, told):
    with pytest.raises(UserError, match=f"run.shard_llm = True does not go with {told}"):
        load_config("configs/mini/stage1.yaml", ["run.shard_llm=True", option])
