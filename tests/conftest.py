"""Where the tests run, in which order, and what all of them may ask for (`tests/fixtures/`)."""

import os
import signal

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
# A shell that starts pytest by `&` has it ignore Ctrl-C, and so would all that the tests start, and then send it to.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    f"tests.fixtures.{name}" for name in "golden mini_world stub_model convert runners judge_server small".split()
]


# These start many processes, and come first: else a worker may be alone with one of them at the end.
LONG_FILES = {
    f"test_{name}.py" for name in ("resume", "stages", "distributed", "damaged_media", "train", "table3", "gpu_check")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
