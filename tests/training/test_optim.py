"""Schedule and weight-decay groups as recorded from the published code."""

import copy
import json

import pytest
import torch
from torch import nn

from salmonn.config.schema import OptimsConfig
from salmonn.training.muon import orthogonal
from salmonn.training.optim import (
    build_optimizer,
    learning_rate,
    require_whole_moments,
    restore_optimizer,
    set_learning_rate,
)
from tests.fixtures.golden import CASES
from tests.fixtures.paths import GOLDEN

SCHEDULES = json.loads((GOLDEN / "lr_schedule.json").read_text())
GROUPS = json.loads((GOLDEN / "optimizer_groups.json").read_text())


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_equal_the_published(name):
    params = SCHEDULES[name]["params"].copy()
    iters_per_epoch = params.pop("iters_per_epoch")
    optims = OptimsConfig(**params)
    for epoch, step, lr in SCHEDULES[name]["rows"]:
        assert learning_rate(optims, iters_per_epoch, epoch, step) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_weight_decay_groups_equal_the_published(golden, name):
    model = golden(name).model
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimsConfig())
    with_decay, without = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(with_decay) == sorted(GROUPS[name]["weight_decay"])
    assert sorted(without) == sorted(GROUPS[name]["no_weight_decay"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_lora_may_have_a_rate_of_its_own(golden):
    model = golden("base").model
    optimizer = build_optimizer(model, OptimsConfig(lora_lr_factor=0.1))
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trainable)
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == pytest.approx(1e-4 if "lora_" in name else 1e-3)


def test_a_restored_optimizer_keeps_what_is_configured_now(golden):
    model = golden("base").model
    before = build_optimizer(model, OptimsConfig(lora_lr_factor=0.1, weight_decay=0.01))
    after = build_optimizer(model, OptimsConfig(lora_lr_factor=0.5, weight_decay=0.02))
    restore_optimizer(after, before.state_dict())
    assert {group["lr_factor"] for group in after.param_groups} == {1.0, 0.5}
    assert {group["weight_decay"] for group in after.param_groups} == {0.0, 0.02}
    with pytest.raises(ValueError, match="group"):
        restore_optimizer(build_optimizer(model, OptimsConfig()), before.state_dict())


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_the_fused_optimizer_moves_as_the_plain_one_and_goes_on_with_its_state():
    torch.manual_seed(0)
    models = [nn.Linear(33, 65)]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    fused, resumed = (build_optimizer(model, OptimsConfig(init_lr=1e-2)) for model in (models[0], models[2]))
    parameters = zip(fused.param_groups, models[1].parameters(), strict=True)
    plain = torch.optim.AdamW([{**group, "params": [p], "fused": False} for group, p in parameters])
    assert all(group["fused"] for group in fused.param_groups)
    take_steps(models[0], fused, range(3))
    take_steps(models[1], plain, range(3))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    models[2].load_state_dict(models[0].state_dict())
    restore_optimizer(resumed, copy.deepcopy(fused.state_dict()))
    take_steps(models[0], fused, range(3, 6))
    take_steps(models[2], resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[2].parameters(), strict=True))
    restore_optimizer(resumed, plain.state_dict())  # of a checkpoint from before
    assert all(group["fused"] for group in resumed.param_groups)


class ConnectorLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.speech_Qformer = nn.Sequential(nn.Linear(16, 24), nn.Linear(16, 24), nn.LayerNorm(24))
        self.speech_llama_proj = nn.Linear(24, 8)
        self.lora_A = nn.Linear(8, 4, bias=False)


WITH_MUON = OptimsConfig(init_lr=1e-2, muon_lr_factor=5, lora_lr_factor=0.5)


def test_muon_takes_the_connectors_matrices_at_a_rate_of_their_own(golden):
    model = golden("base").model
    optimizer = build_optimizer(model, WITH_MUON)
    set_learning_rate(optimizer, 1e-3)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_muon = parameter.ndim == 2 and name.startswith(("speech_Qformer.", "speech_llama_proj."))
            group = groups[id(parameter)]
            assert group["muon"] == by_muon, name
            assert group["lr"] == pytest.approx(5e-3 if by_muon else 5e-4 if "lora_" in name else 1e-3)
            assert group["weight_decay"] == (0.05 if name in GROUPS["base"]["weight_decay"] else 0.0)


@pytest.mark.parametrize("in_bfloat16", [True, False])
def test_muon_moves_a_matrix_as_pytorchs_own_and_the_rest_as_adamw(monkeypatch, in_bfloat16):
    monkeypatch.setattr("salmonn.common.device.computes_bfloat16", lambda: in_bfloat16)
    models = [ConnectorLike() for _ in range(3)]
    ours = build_optimizer(models[0], WITH_MUON)
    set_learning_rate(ours, 1e-2)
    matrices = [p for p in models[1].parameters() if p.ndim == 2 and p.shape != (4, 8)]
    muon = torch.optim.Muon(matrices, lr=5e-2, weight_decay=0.05)
    adamw = build_optimizer(models[2], OptimsConfig(init_lr=1e-2, lora_lr_factor=0.5))
    set_learning_rate(adamw, 1e-2)
    for model, optimizer in zip(models, (ours, muon, adamw), strict=True):
        take_steps(model, optimizer, range(3))
    for (name, moved), by_muon, by_adamw, start in zip(
        models[0].named_parameters(), models[1].parameters(), models[2].parameters(), ConnectorLike().parameters(),
        strict=True,
    ):  # fmt: skip
        if "lora_" not in name and moved.ndim == 2:  # PyTorch's in bfloat16
            step, expected = moved - start, by_muon - start
            assert (step - expected).norm() < 0.02 * expected.norm(), name
        else:
            assert torch.equal(moved, by_adamw), name


def test_an_orthogonal_matrix_moves_all_directions_about_equally_far():
    matrices = torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-0.5, 0.5, 20)
    before, values = (torch.linalg.svdvals(m) for m in (matrices, orthogonal(matrices)))
    assert before.max() > 15 * before.min()
    assert 0.6 < values.min() < values.max() < 1.3
    for wide in (matrices.mT, matrices):
        assert orthogonal(wide).shape == wide.shape


def test_a_run_with_muon_goes_on_bit_for_bit_and_not_with_the_state_of_another_optimizer():
    whole, stopped = ConnectorLike(), ConnectorLike()
    take_steps(whole, build_optimizer(whole, WITH_MUON), range(4))
    before, after = build_optimizer(stopped, WITH_MUON), build_optimizer(stopped, WITH_MUON)
    take_steps(stopped, before, range(2))
    saved = copy.deepcopy(before.state_dict())
    require_whole_moments(saved, all_have_stepped=True)
    restore_optimizer(after, saved)
    take_steps(stopped, after, range(2, 4))
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), stopped.parameters(), strict=True))

    cut = copy.deepcopy(saved)
    cut["state"][saved["param_groups"][-1]["params"][0]].pop("momentum_buffer")
    with pytest.raises(ValueError, match="lacks the moments of 1 of"):
        require_whole_moments(cut, all_have_stepped=True)
    with pytest.raises(ValueError, match="group"):
        restore_optimizer(build_optimizer(stopped, OptimsConfig()), saved)
    only_matrices, same = nn.ModuleDict({"speech_llama_proj": nn.Linear(3, 2, bias=False)}), OptimsConfig()
    with pytest.raises(ValueError, match="Muon"):
        restore_optimizer(build_optimizer(only_matrices, same), build_optimizer(only_matrices, WITH_MUON).state_dict())


def test_with_muon_a_step_that_overflows_moves_nothing():
    model = ConnectorLike()
    optimizer = build_optimizer(model, WITH_MUON)
    scaler = torch.amp.GradScaler("cpu")
    take_steps(model, optimizer, range(1))
    before = copy.deepcopy([*model.parameters(), *(v for kept in optimizer.state.values() for v in kept.values())])
    scaler.scale(torch.zeros(()))  # makes its scale
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    scaler.step(optimizer)
    now = [*model.parameters(), *(v for kept in optimizer.state.values() for v in kept.values())]
    assert all(torch.equal(*pair) for pair in zip(before, now, strict=True))
