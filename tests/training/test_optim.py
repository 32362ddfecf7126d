"""Schedule and weight-decay groups as recorded from the published code."""

import copy
import json

import pytest
import torch
from torch import nn

from salmonn.config.schema import OptimsConfig
from salmonn.training.optim import build_optimizer, learning_rate, restore_optimizer, set_learning_rate
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
