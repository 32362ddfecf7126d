"""What Slurm says about a job step, in torchrun's words."""

import pytest

from salmonn.common.errors import UserError
from salmonn.common.slurm import environment, first_node, require_whole, tasks_on_node

STEP = {
    "SLURM_JOB_ID": "31007", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NODELIST": "node[001-004]", "SLURM_NODEID": "1",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip


def test_a_slurm_step_of_several_tasks_is_a_process_group():
    assert environment(STEP) == {
        "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "node003", "MASTER_PORT": "21007",
    }  # fmt: skip
    ports = {environment({**STEP, "SLURM_JOB_ID": job})["MASTER_PORT"] for job in ("31007", "31008", "99")}
    assert len(ports) == 3
    own = {**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4711"}
    assert own.items() >= environment(own).items() - environment(STEP).items() == {
        ("MASTER_ADDR", "10.0.0.7"), ("MASTER_PORT", "4711"),
    }  # fmt: skip


def test_tasks_that_see_one_gpu_each_take_that():
    assert environment({**STEP, "CUDA_VISIBLE_DEVICES": "2"})["LOCAL_RANK"] == "0"
    assert environment({**STEP, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})["LOCAL_RANK"] == "1"


def test_torchrun_wins_and_an_sbatch_script_is_one_process():
    assert environment({**STEP, "RANK": "0"}) == {}
    script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert environment(script) == {}
    assert environment({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert environment({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[003-006,9],gpu1", "node003"),
        ("gpu1,node[003-006]", "gpu1"),
        ("localhost", "localhost"),
        ("rack[1-2]n[07-09,12]", "rack1n07"),
        ("node[9,11]-ib", "node9-ib"),
        ("a-b-1,a-b-2", "a-b-1"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str):
    assert first_node(nodes) == first


def test_tasks_of_each_node():
    assert [tasks_on_node("4(x2),3", node) for node in range(3)] == [4, 4, 3]
    assert tasks_on_node("2", 0) == 2


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}


@pytest.mark.parametrize("environ", [{}, TORCHRUN, environment(STEP), {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "0"}])
def test_the_environment_of_a_launcher_and_of_none_is_whole(environ):
    require_whole(environ, joins=True)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"RANK": "0"}, "RANK is set, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({**TORCHRUN, "RANK": "2"}, "RANK = 2 is not below WORLD_SIZE = 2"),
        ({"RANK": "one"}, "RANK = 'one' is no number"),
        ({"RANK": ""}, "RANK = '' is no number"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK = 2, but RANK is not set"),
        ({"RANK": "²"}, "RANK = '²' is no number"),
        ({"SLURM_RESTART_COUNT": "once"}, "SLURM_RESTART_COUNT = 'once' is no number"),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": ""}, "TORCHELASTIC_RESTART_COUNT = '' is no number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT = 70000 is above 65535"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1' is no number"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT = 'http' is no number"),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}, "RANK is set, MASTER_ADDR not"),
    ],
)
def test_what_is_left_of_a_launchers_environment_is_told(environ, told):
    with pytest.raises(UserError, match="not that of torchrun or srun") as error:
        require_whole(environ, joins=True)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        *(({name: None}, f"{name} is not set") for name in STEP if name not in (
            "SLURM_STEP_NUM_TASKS", "SLURM_NODELIST", "SLURM_LAUNCH_NODE_IPADDR")),
        ({"SLURM_JOB_ID": "x"}, "'x'"), ({"SLURM_STEP_TASKS_PER_NODE": ""}, "index"), ({"SLURM_NODEID": "9"}, "index"),
        ({"SLURM_STEP_NODELIST": ""}, "index"),
    ],
)  # fmt: skip
def test_what_is_left_of_a_slurm_steps_environment_is_told(changes, told):
    environ = {name: value for name, value in (STEP | changes).items() if value is not None}
    with pytest.raises(UserError, match=r"not that of srun: SLURM_STEP_NUM_TASKS = 7, but .* Start the") as error:
        environment(environ)
    assert told in str(error.value)


def test_a_command_that_joins_no_others_needs_numbers_only():
    require_whole({"RANK": "0", "MASTER_PORT": "tcp://10.0.0.1:80"}, joins=False)
    with pytest.raises(UserError, match="RANK = 'x' is no number"):
        require_whole({"RANK": "x"}, joins=False)
