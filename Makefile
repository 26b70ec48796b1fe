# `make` alone lists the targets. Every target makes .venv first and says what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := postgres,cassandra,redis,s3,dynamodb,opensearch,parquet,test,dev,bench

# Tests start hundreds of processes, and pytest rewrites every test module: compiled once, also where the environment says
# that nothing is to be written beside the code.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.pytest_cache/compiled

.PHONY: help demo test check deep soak bench docs stack clean
.PHONY: lint types layers fast-units fast-fakes stores-on-servers jobs-on-servers without-servers real-needs

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Two builds at once are common (an editor and a terminal), so one makes the environment and the other waits.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: Python 3.11 or newer is missing ('$(PYTHON)' is older or absent): install it, or name one: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: Python's venv module is missing: install it (Debian: apt install python3-venv)"; exit 2; }
	@mkdir -p $(VENV)
	@exec 9> $(VENV)/.lock; if command -v flock > /dev/null; then flock 9; fi; \
	  if [ $(STAMP) -nt pyproject.toml ]; then exit 0; fi; \
	  echo "make: preparing $(VENV) (about a minute the first time)" >&2; \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' || \
	    { echo "make: installing the packages failed: read pip's message above; a package index must be reachable"; exit 2; }; \
	  touch $(STAMP)

demo: $(STAMP)  ## a live workload, an online migration, a proof: about a minute, no server needed
	@[ -e cli/demo.py ] || [ -e cli/demo ] || { echo "make demo: cli/demo is not written yet"; exit 2; }
	@$(BIN)/datalayer demo

check: $(STAMP)  ## types, lint, layers, unit tests and fakes: under a minute
	@$(MAKE) --no-print-directory -k -j2 -Otarget fast-units types fast-fakes lint layers

test: $(STAMP) real-needs  ## everything, on real servers that it installs and starts: under 20 minutes
	@$(MAKE) --no-print-directory -k -j2 -Otarget lint types layers
	@$(MAKE) --no-print-directory -k -j3 stores-on-servers jobs-on-servers without-servers

deep: $(STAMP)  ## the long programmes: under an hour
	@grep -rqs 'mark.deep' tests --include='*.py' --exclude=conftest.py || { echo "make deep: no test is marked 'deep' yet"; exit 2; }
	@DATALAYER_TIER=deep $(BIN)/python -m pytest -q tests

soak: $(STAMP)  ## an hour of traffic, faults and migrations on real servers
	@[ -e tests/soak/__main__.py ] || { echo "make soak: tests/soak is not written yet"; exit 2; }
	@$(BIN)/python -m tests.soak

bench: $(STAMP)  ## speed and memory beside peers; results as JSON and plots in docs/
	@[ -e benchmarks/__main__.py ] || { echo "make bench: benchmarks/__main__.py is not written yet"; exit 2; }
	@$(BIN)/python -m benchmarks

docs: $(STAMP)  ## the documentation, checked: links resolve, examples run
	@[ -e tests/docs/__init__.py ] || { echo "make docs: tests/docs is not written yet"; exit 2; }
	@$(BIN)/python -m pytest -q tests/docs

stack: $(STAMP)  ## starts real servers for playing by hand and prints the TOML for them; WITH=redis,s3 adds some
	@[ -e tests/servers/__main__.py ] || { echo "make stack: tests/servers/__main__.py is not written yet"; exit 2; }
	@$(BIN)/python -m tests.servers --with "$(WITH)"

clean:  ## removes what these targets made in the checkout
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage datalayer-data
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Parts of check and test.
lint:
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "make lint: run $(BIN)/ruff format on these files:"; $(BIN)/ruff format --check .; }

types:
	@$(BIN)/mypy --no-error-summary

layers:
	@$(BIN)/lint-imports > $(VENV)/.layers 2>&1 || { cat $(VENV)/.layers; exit 1; }

fast-units:
	@DATALAYER_TIER=check $(BIN)/python -m pytest -q -m 'not servers and not deep' tests/unit

fast-fakes:
	@DATALAYER_TIER=check $(BIN)/python -m pytest -q -m 'not servers and not deep' tests/contract tests/simulation

# Three runs beside each other, each with servers of its own: two mostly wait for them, the third for the processor.
stores-on-servers:
	@DATALAYER_TIER=test $(BIN)/python -m pytest -q -m 'servers and not deep' --ignore tests/acceptance tests

jobs-on-servers:
	@DATALAYER_TIER=test $(BIN)/python -m pytest -q -m 'servers and not deep' tests/acceptance

without-servers:
	@DATALAYER_TIER=test $(BIN)/python -m pytest -q -m 'not servers and not deep' tests

real-needs: $(STAMP)
	@for folder in contract simulation integration acceptance; do \
	  ls tests/$$folder/test_*.py > /dev/null 2>&1 || { echo "make test: tests/$$folder holds no test yet"; exit 2; }; done
	@[ -e tests/servers/__init__.py ] || { echo "make test: tests/servers is not written yet"; exit 2; }
	@$(BIN)/python -m tests.servers needs
