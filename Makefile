# Everything is installed into .venv; models and runs are kept in localtune's home ($LOCALTUNE_HOME).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# More arguments for pip, for example a package index of your own.
PIP_ARGS ?=
# Set it to run the demo without the app even on a terminal.
HEADLESS ?=
# How many processes run tests; many tests wait for a process of their own.
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
# Where the tests keep the starter model.
export LOCALTUNE_TEST_CACHE ?= $(CURDIR)/.pytest_cache/localtune

# Each process of the tests would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
# The versions to install; empty for the newest that pyproject.toml allows.
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(CONSTRAINTS:%=--constraint %) $(PIP_ARGS)
# Empty files that are as old as what has been installed.
APP := $(VENV)/.installed-app
DEV := $(VENV)/.installed-tests

.PHONY: help demo check test test-long test-floor newest constraints flaky mutants models format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

demo: $(APP) ## Train the starter model on sample tickets and talk to it; HEADLESS=1: without the app
	@echo "The starter model, SmolLM2-135M-Instruct"
	@$(BIN)/python -m core.worker.model.starter
	@echo "The demo: 400 support tickets teach it to answer in JSON"
	@if [ -t 0 ] && [ -t 1 ] && [ "$(HEADLESS:0=)" = "" ]; then \
	  exec $(BIN)/localtune-tui --demo; else exec $(BIN)/localtune-tui demo; fi

# A module runs in one process, so its fixtures are made once; tests/longest_first.py has the order.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# More arguments for pytest, for example --durations=30, or --record-durations to sort the modules anew.
ARGS ?=
SUITE := $(PYTEST) -q --rerun-failed $(ARGS)

check: $(DEV) ## Check style, types and layers, and run the unit tests without training: two minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SUITE) -m "not slow and not long" --hypothesis-profile=quick

test: starter ## Run the tests: ten minutes on two cores
	$(SUITE) -m "not long" --hypothesis-profile=quick

test-long: starter ## Run what 'make test' leaves out, and all properties with more examples: twenty minutes
	$(SUITE) -m "long or hypothesis"

.PHONY: starter
starter: $(DEV)
	@echo "Preparing the starter model for the tests"
	@LOCALTUNE_HOME="$$LOCALTUNE_TEST_CACHE" $(BIN)/python -m core.worker.model.starter >/dev/null

test-floor: ## Run the tests with the oldest versions that pyproject.toml allows, in .venv-floor
	@$(MAKE) --no-print-directory VENV=.venv-floor CONSTRAINTS=constraints-floor.txt test

newest: ## Run the tests with the newest versions that pyproject.toml allows, in .venv-newest
	@$(MAKE) --no-print-directory VENV=.venv-newest CONSTRAINTS= PIP_ARGS="$(PIP_ARGS) --upgrade --upgrade-strategy eager" test

COMPILE := .venv-uv/bin/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-annotate \
  --custom-compile-command "make constraints" pyproject.toml
# One PyTorch for all Pythons.
TORCH := 2.13.0
constraints: ## Write the files of versions anew: the newest, or with UPGRADE=NAME that of NAME; and the oldest
	@test -x .venv-uv/bin/uv || { $(PYTHON) -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet uv; }
	$(COMPILE) --constraint <(echo torch==$(TORCH)) $(if $(UPGRADE),--upgrade-package $(UPGRADE),--upgrade) --output-file constraints.txt
	$(COMPILE) --upgrade --resolution lowest-direct --output-file constraints-floor.txt

# Tests that wait for a process, a thread or a screen are run by this before they land.
TESTS ?=
TIMES ?= 20
flaky: $(DEV) ## Run TESTS again and again (TIMES=20) beside two busy processes
	@test -n "$(TESTS)" || { echo "Name the tests: make flaky TESTS=tests/e2e/test_queue.py" >&2; exit 1; }
	@trap 'kill $$(jobs -p) 2>/dev/null' EXIT; \
	for busy in 1 2; do while :; do :; done & done; \
	for time in $$(seq $(TIMES)); do \
	  echo "$$time of $(TIMES)"; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x $(TESTS) || exit 1; \
	done

mutants: starter ## Change the code that matters most in small ways, and count the changes that no test notices
	@$(PIP) cosmic-ray==8.7.0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

models: $(DEV) ## Try every family of models, and write the tables of docs/models.md and README.md
	rm -f build/families.jsonl && mkdir -p build
	-LOCALTUNE_RECORD_FAMILIES=$(CURDIR)/build/families.jsonl $(PYTEST) -q tests/families
	$(BIN)/python -m tests.families.page build/families.jsonl
	$(BIN)/python -m tests.families.fits

format: $(DEV) ## Put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and everything that was built here; models and runs stay
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks venv or ensurepip. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(APP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing into $(VENV): pip names each download with its size; PyTorch is the largest, and takes minutes"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing into $(VENV), with what the tests need; PyTorch is the largest download, and takes minutes"
	@$(PIP) -e '.[test]'
	@touch $(APP) $@
