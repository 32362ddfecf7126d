"""Every key is in docs/configuration.md with its default: a new one, or another default, is a decision."""

import json
import re

import pytest
from omegaconf import OmegaConf

from salmonn.config.checks import CHOICES
from salmonn.config.keys import known_keys
from salmonn.config.loading import leaves
from salmonn.config.schema import Config
from tests.fixtures.paths import ROOT

PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\S+)` \| `(.*?)` \| (.+) \|$", PAGE, re.MULTILINE)
DEFAULTS = dict(leaves(OmegaConf.to_container(OmegaConf.structured(Config))))


def test_the_page_has_every_key_once_in_the_order_of_the_schema_and_no_other():
    keys = known_keys()
    assert [key for key, _, _ in ROWS] == [key for key in keys if not any(k.startswith(f"{key}.") for k in keys)]
    table_rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(table_rows) == len(ROWS)  # none is written so that it was not read


@pytest.mark.parametrize(("key", "default"), [row[:2] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_default_on_the_page_is_that_of_the_schema(key: str, default: str):
    value = json.loads(default)
    assert value == DEFAULTS[key]
    assert isinstance(value, bool) == isinstance(DEFAULTS[key], bool)


@pytest.mark.parametrize("key", CHOICES)
def test_the_page_names_every_choice(key: str):
    [(default, what)] = [row[1:] for row in ROWS if row[0] == key]
    for choice in CHOICES[key]:
        assert f"`{choice}`" in what or default == json.dumps(choice), choice


def test_a_key_stands_under_the_heading_of_its_section():
    for heading, part in re.findall(r"^##+ (\S+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        keys = re.findall(r"^\| `(\S+)`", part, re.MULTILINE)
        assert {key.rpartition(".")[0] for key in keys} == {heading}
