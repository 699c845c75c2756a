# KnowMVG Node: set-up, demo, tests. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
UV     ?= uv
PAGE   ?= bench.md
JOBS   ?= 2
TORCH  := torch==2.13.0
BIN    := $(VENV)/bin
FAST   := tests/unit tests/repo
SLOW   := tests/integration tests/model tests/acceptance tests/validation tests/faults
ROWS   ?= .faults.jsonl
# Faults whose times count have the machine to themselves.
TIMED  := tests/faults/test_archives.py tests/faults/test_outages.py tests/faults/test_alerts_live.py

# Tests run as many processes as there are cores, so each takes one thread.
test check validate faults: export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help
help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

.PHONY: demo
demo: venv  ## Send a generated study through the whole node; results in demo-out (OUT=…).
	$(BIN)/knowmvg demo --out $(OUT)

.PHONY: test
test: venv peers lint  ## Everything that CI runs: lint, then the whole suite.
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(FAST) $(SLOW)

.PHONY: validate
validate: venv peers  ## The long form of tests/validation: 1,000 films' coordinates, 500 results before every validator.
	$(BIN)/pytest -n $(JOBS) --dist load tests/validation --full

.PHONY: faults
faults: venv peers  ## The long form of tests/faults: kills, outages, misbehaving archives, floods, fuzz; writes docs/faults.md.
	rm -f $(ROWS)
	export KNOWMVG_FAULTS_OUT=$(abspath $(ROWS)); status=0; \
	$(BIN)/pytest $(TIMED) --full || status=$$?; \
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(addprefix --deselect=,$(TIMED)) tests/faults --full || status=$$?; \
	$(BIN)/python -m tests.faults.table $(ROWS) docs/faults.md; exit $$status

.PHONY: check
check: venv lint  ## Format, lint, types, import contracts, fast tests.
	$(BIN)/pytest $(FAST)

.PHONY: lint
lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: venv  ## Format the code, and repair what lint can repair.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: bench
bench: venv peers  ## Every benchmark, small sizes, as one Markdown page (PAGE=bench.md).
	$(BIN)/python -m bench --page $(PAGE)

.PHONY: peers
peers:  ## Install the foreign peers of the tests (DCMTK, Orthanc, Redis, …) when this user may.
	@tests/install-peers.sh

.PHONY: lock
lock:  ## Resolve requirements.lock anew from pyproject.toml and requirements.in, and the image's part of it (needs uv).
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: $(PYTHON) -m pip install uv" >&2; exit 1; }
	$(UV) pip compile requirements.in pyproject.toml --extra dev --extra train --universal --python-version 3.11 --generate-hashes \
	    --no-header --override <(echo '$(TORCH) ; sys_platform == "never"') -o requirements.lock
	$(UV) pip compile requirements.in pyproject.toml --constraint requirements.lock --universal --python-version 3.11 \
	    --generate-hashes --no-header --override <(echo '$(TORCH) ; sys_platform == "never"') -o deploy/requirements.lock

.PHONY: clean
clean:  ## Remove what was built and what the tools remember; keeps var/ (studies).
	rm -rf $(VENV) demo-out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: each stamp says that its step was done for the present lock and project -------------------------------

.PHONY: venv
venv: $(VENV)/.project

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.locked: requirements.lock $(VENV)/.created
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@touch $@

# torch is not in the lock: each machine takes the build that its package index offers (CPU, CUDA 12, CUDA 13 …).
$(VENV)/.torch: $(VENV)/.locked
	@$(BIN)/python -c 'from importlib.metadata import version; v = version("torch"); assert v.split("+")[0] == "$(TORCH)"[7:]' \
	    2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
