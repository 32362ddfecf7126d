"""Imports of the big libraries: no look for garbage, no compiling."""

import gc
import sys

import pytest
import torch

from salmonn.common.imports import compiling_later, importing


@pytest.fixture
def _without_torch(monkeypatch):
    """As in a process that has not loaded it; what is frozen is let go again."""
    monkeypatch.delitem(sys.modules, "torch")
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_without_torch")
@pytest.mark.parametrize("error", [None, ImportError])
def test_no_garbage_is_looked_for_while_libraries_are_imported_nor_afterwards_in_what_they_hold(error):
    held = [[]]
    try:
        with importing():
            assert not gc.isenabled()
            if error:
                raise error
    except ImportError:
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert all(held is not one for one in gc.get_objects())


@pytest.mark.usefixtures("_without_torch")
def test_who_looks_for_no_garbage_himself_finds_it_so_again():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_there_beside_a_loaded_torch_can_still_be_collected():
    assert "torch" in sys.modules
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_is_to_be_compiled_while_peft_is_imported_is_compiled_at_its_first_call(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(options) or function)
    before = torch.compile
    with compiling_later():
        double = torch.compile(lambda x: 2 * x, dynamic=False)
        decorated = torch.compile(dynamic=True)(lambda x: 3 * x)
    assert torch.compile is before
    assert compiled == []
    assert (double(2), double(3)) == (4, 6)
    assert compiled == [{"dynamic": False}]
    assert decorated(2) == 6
    assert compiled[1:] == [{"dynamic": True}]
