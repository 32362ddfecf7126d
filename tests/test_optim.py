"""Schedule and weight-decay groups as recorded from the published code."""

import json

import pytest

from conftest import CASES, GOLDEN
from salmonn.optim import build_optimizer, learning_rate
from salmonn.schema import OptimsConfig

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
