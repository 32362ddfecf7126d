"""What is exported twice is the same to the byte."""

import json

from salmonn.config.loading import model_config
from tests.fixtures.golden import golden_config
from util.conversion.lora import write_adapter


def test_the_modules_of_an_adapter_stand_in_an_order_that_is_always_the_same(tmp_path):
    names = ["v_proj", "q_proj", "up_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    section = model_config({"llama_path": str(golden_config("base").llama_path), "lora_target_modules": names})
    write_adapter(tmp_path, {}, section)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(names)
