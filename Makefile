# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of
# constraints.txt. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow check format bench-dpo bench-generation clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make the virtual environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

quickstart: $(READY) ## run MACPO end to end on a small real model (about 10 minutes on two cores)
	$(BIN)/macpo run examples/quickstart.yaml

test: $(READY) ## run the tests (CPU, minutes)
	$(BIN)/python -m pytest -q

test-slow: $(READY) ## also the slow tests: real model, kill -9 sweeps
	$(BIN)/python -m pytest -q -m 'slow or not slow'

check: $(READY) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

DATA ?= ../shared/data/hh-harmless-1800.jsonl.gz
bench-dpo: $(READY) ## a DPO step against TRL's (DATA=an HH-RLHF file)
	$(BIN)/python bench/dpo_step.py --data $(DATA)

bench-generation: $(READY) ## decoding against transformers' generate (DATA=an HH-RLHF file)
	$(BIN)/python bench/generation.py --data $(DATA)

clean: ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
