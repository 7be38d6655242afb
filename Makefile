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
# How many tests run side by side at most; each may start a process that trains.
TEST_PROCESSES ?= 4
# Where the tests keep the starter model.
export LOCALTUNE_TEST_CACHE ?= $(CURDIR)/.pytest_cache/localtune

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS)
# Empty files that are as old as what has been installed.
APP := $(VENV)/.installed-app
TESTS := $(VENV)/.installed-tests
# The oldest PyTorch that pyproject.toml allows, and where the tests run with it.
FLOOR := $(shell sed -n 's/^ *"torch>=\([0-9.]*\).*/\1/p' pyproject.toml)
FLOOR_VENV := .venv-floor

.PHONY: help demo check test suite test-floor models format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

demo: $(APP) ## Train the starter model on sample tickets and talk to it; HEADLESS=1: without the app
	@echo "Preparing the starter model"
	@$(BIN)/python -m core.worker.model.starter >/dev/null
	@if [ -t 0 ] && [ -t 1 ] && [ "$(HEADLESS:0=)" = "" ]; then \
	  exec $(BIN)/localtune-tui --demo; else exec $(BIN)/localtune-tui demo; fi

# Style, types and layers.
define STATIC
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/mypy
$(BIN)/lint-imports
endef
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses $(TEST_PROCESSES) --dist worksteal

check: $(TESTS) ## Check style, types and layers, and run the unit tests without training: two minutes
	$(STATIC)
	$(PYTEST) -m "not slow" --hypothesis-profile=quick -q

test: $(TESTS) ## Check style, types and layers, and run all tests
	$(STATIC)
	@$(MAKE) --no-print-directory suite

suite: $(TESTS)
	@echo "Preparing the starter model for the tests"
	@LOCALTUNE_HOME="$$LOCALTUNE_TEST_CACHE" $(BIN)/python -m core.worker.model.starter >/dev/null
	$(PYTEST)

test-floor: ## Run all tests with the oldest PyTorch that is allowed, in an environment of its own
	@$(MAKE) --no-print-directory VENV=$(FLOOR_VENV) PIP_ARGS="$(PIP_ARGS) torch==$(FLOOR).*" suite

models: $(TESTS) ## Try every family of models, and write the tables of docs/models.md and README.md
	rm -f build/families.jsonl && mkdir -p build
	-LOCALTUNE_RECORD_FAMILIES=$(CURDIR)/build/families.jsonl $(PYTEST) -q tests/families
	$(BIN)/python -m tests.families.page build/families.jsonl
	$(BIN)/python -m tests.families.fits

format: $(TESTS) ## Put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and everything that was built here; models and runs stay
	rm -rf $(VENV) $(FLOOR_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$$($(PYTHON) --version) is too old: Python 3.10 or newer is needed. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks venv or ensurepip. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(APP): pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV); the first time this fetches PyTorch and takes minutes"
	@$(PIP) -e .
	@touch $@

$(TESTS): pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), with what the tests need; the first time this fetches PyTorch and takes minutes"
	@$(PIP) -e '.[test]'
	@touch $(APP) $@
