"""What torchrun says about the processes of a command, and Slurm (`srun python train.py`) in torchrun's words."""

import re
from collections.abc import Mapping

from salmonn.common.errors import UserError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "SLURM_RESTART_COUNT")  # by which a run goes on
_LAST_PORT = 65_535

_FIRST_PORT, _N_PORTS = 20_000, 10_000  # below the ports that systems give away by themselves


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would have set, {} where it did or where no step of several tasks runs.

    Only `srun` sets SLURM_STEP_NUM_TASKS: an sbatch script's own commands run once, however many
    tasks the job asks for. Rank 0 runs on the step's first node, SLURM_LAUNCH_NODE_IPADDR is where
    srun was called. What the user has set of MASTER_ADDR and MASTER_PORT stays. Raises UserError for a part of srun's
    variables, as shells and containers leave it behind.
    """
    if "RANK" in environ or environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    try:
        return _of_step(environ)
    except (KeyError, ValueError, IndexError) as error:
        wrong = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the environment is not that of srun: SLURM_STEP_NUM_TASKS = {environ['SLURM_STEP_NUM_TASKS']}, but "
            f"{wrong}. Start the command by srun, or remove that variable: unset SLURM_STEP_NUM_TASKS"
        ) from error


def _of_step(environ: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables from all of srun's."""
    # bound to one GPU each (--gpus-per-task), every task calls its own cuda:0
    one_gpu_each = "," not in environ.get("CUDA_VISIBLE_DEVICES", ",")
    port = _FIRST_PORT + (int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])) % _N_PORTS
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if one_gpu_each else environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_on_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"]))),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(port),
    }


def require_whole(environ: Mapping[str, str], joins: bool) -> None:
    """Raise UserError for variables of a launcher that it cannot have set: shells and containers leave some behind.

    `joins`: whether this command is to be one of several processes.
    """
    names = (*_NUMBERS, *_COUNTS, *(("MASTER_PORT",) if joins else ()))  # Kubernetes gives that to a service's name
    numbers = {name: environ[name] for name in names if name in environ}
    problems = [
        f"{name} = {value!r} is no number" for name, value in numbers.items() if not re.fullmatch("[0-9]{1,9}", value)
    ]
    if not problems and int(numbers.get("MASTER_PORT", 0)) > _LAST_PORT:
        problems.append(f"MASTER_PORT = {environ['MASTER_PORT']} is above {_LAST_PORT}")
    if not problems and int(environ.get("LOCAL_RANK", 0)) and "RANK" not in environ:  # it leaves checks to another one
        problems.append(f"LOCAL_RANK = {environ['LOCAL_RANK']}, but RANK is not set")
    if joins and not problems and "RANK" in environ:
        missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            problems.append(f"RANK is set, {', '.join(missing)} not")
        elif int(environ["RANK"]) >= int(environ["WORLD_SIZE"]):
            problems.append(f"RANK = {environ['RANK']} is not below WORLD_SIZE = {environ['WORLD_SIZE']}")
    if problems:
        raise UserError(
            f"the environment is not that of torchrun or srun: {'; '.join(problems)}. Start the command by one of "
            f"them, or remove these variables: unset {' '.join(numbers)}"
        )


def first_node(nodes: str) -> str:
    """The first host of a compressed list: "node[003-006,9]-ib,gpu1" gives "node003-ib"."""
    first = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Number of tasks on a node of the step: "4(x2),3" gives 4, 4, 3."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    return counts[node]
