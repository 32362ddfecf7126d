"""AdamW groups and the warm-up + cosine schedule, as published (paper section 4.1); Muon as an option."""

import math

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import AdamW

from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from salmonn.training.muon import KEPT, MuonAdamW

_NO_DECAY_NAMES = ("bias", "ln", "bn")
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps of each parameter from its first step on
_FUSED_ON = ("cpu", "cuda")
_CONNECTOR = ("speech_Qformer.", "speech_llama_proj.")  # whose matrices Muon may take


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Published rule: no weight decay below two dimensions or where the name holds bias, ln or bn."""
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY_NAMES)


def build_optimizer(model: nn.Module, optims: DictConfig) -> AdamW:
    """AdamW over the trainable parameters, betas (0.9, beta2), decay on matrices only.

    Two groups as published; where `lora_lr_factor` is not 1, the LoRA parameters have groups of
    their own, with that multiple of the rate. Where `muon_lr_factor` is not 0, the connector's matrices
    go by Muon, with that multiple.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UserError("nothing to train: every part is frozen (model.freeze_*, model.lora)")
    factors = {"": 1.0, "lora": optims.lora_lr_factor, "muon": optims.muon_lr_factor}

    def way_of(name: str, parameter: nn.Parameter) -> str:
        if optims.muon_lr_factor and parameter.ndim == 2 and name.startswith(_CONNECTOR):
            return "muon"
        return "lora" if "lora_" in name and optims.lora_lr_factor != 1 else ""

    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        members.setdefault((way_of(name, parameter), not decays(name, parameter)), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": 0.0 if is_bare else optims.weight_decay,
            "lr_factor": factors[way],
            "muon": way == "muon",
        }
        for (way, is_bare), parameters in sorted(members.items(), key=lambda item: item[0])
    ]
    # one kernel for all: faster, without copies, and an overflow of fp16 is left out without asking the device
    fused = all(p.device.type in _FUSED_ON for _, p in trainable) or None
    kind = MuonAdamW if optims.muon_lr_factor else AdamW
    return kind(groups, lr=optims.init_lr, betas=(0.9, optims.beta2), eps=1e-8, fused=fused)


def restore_optimizer(optimizer: AdamW, state: dict) -> None:
    """Take up moments and step counts; all settings stay as configured now. Raises ValueError if they do not fit."""
    groups, saved = optimizer.param_groups, state["param_groups"]
    if len(saved) != len(groups):
        raise ValueError(f"its parameters are in another number of groups ({len(saved)}, not {len(groups)})")
    if any(ours["muon"] != its.get("muon", False) for ours, its in zip(groups, saved, strict=True)):
        raise ValueError("Muon (run.optims.muon_lr_factor) moved other parameters then than now")
    pairs = zip(groups, saved, strict=True)
    optimizer.load_state_dict({**state, "param_groups": [{**ours, "params": its["params"]} for ours, its in pairs]})
    for parameter, moments in optimizer.state.items():
        for name, values in moments.items():
            if not isinstance(values, Tensor) or values.shape != (() if name == "step" else parameter.shape):
                raise ValueError(f"{name} of a parameter of shape {list(parameter.shape)} is of another one")


def require_whole_moments(state: dict, all_have_stepped: bool) -> None:
    """Raise ValueError where a saved state holds NaN or infinite moments, or lacks some of what had steps."""
    if not {"state", "param_groups"} <= state.keys():
        raise ValueError("it is no state of an optimiser")
    moments = state["state"]
    values = {f"{number} {name}": value for number, its in moments.items() for name, value in its.items()}
    if problem := checkpoint.not_finite(values):
        raise ValueError(f"it {problem}")
    kept = {n: KEPT if group.get("muon") else _MOMENTS for group in state["param_groups"] for n in group["params"]}
    stepped = kept if all_have_stepped else [number for number in kept if moments.get(number)]
    bare = [number for number in stepped if not moments.get(number, {}).keys() >= kept[number]]
    if bare:
        raise ValueError(
            f"it lacks the moments of {len(bare)} of {len(kept)} parameters, which had steps: what wrote it had "
            "failed, so take an earlier file"
        )


def learning_rate(optims: DictConfig, iters_per_epoch: int, epoch: int, step: int) -> float:
    """Learning rate at a step inside an epoch.

    As published, the warm-up ramp follows the step inside the epoch, the cosine the total step
    counted from 0 (not from the warm-up's end), and the total step decides between them.
    """
    start = optims.warmup_start_lr if optims.warmup_start_lr >= 0 else optims.init_lr
    total_step = epoch * iters_per_epoch + step
    if total_step < optims.warmup_steps:
        return min(optims.init_lr, start + (optims.init_lr - start) * step / max(optims.warmup_steps, 1))
    progress = total_step / (optims.max_epoch * iters_per_epoch)
    return optims.min_lr + (optims.init_lr - optims.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
