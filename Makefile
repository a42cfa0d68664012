# Everything here needs Python 3.11 or newer, pip and make; nothing is written outside this folder
# but pip's own cache. A person and CI run the same commands. More arguments: make run ARGS="--json".

SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip asks rustc, where there is one, for its version, and rustup would write into the home folder.
export RUSTUP_HOME ?= $(CURDIR)/$(VENV)/rustup
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-faults check bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

run: $(VENV)/core  ## install, then take the recipe quickstart from stories to a registered model
	$(BIN)/slm run $(ARGS)

test: $(VENV)/dev  ## install, then run the tests
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/dev  ## the long proofs
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/dev  ## the proofs of recovery, whole, of every stage: kills, full disks, flipped bits
	$(BIN)/python -m pytest -n 0 -m 'slow or not slow' \
		-k '(fault or kill or signals or overlap) and not services'

check: $(VENV)/dev  ## format, lint, types, import order, recipes and deployments
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/slm check

bench: $(VENV)/dev  ## our figures beside those of peers
	for name in encode train sample checkpoint mirror; do $(BIN)/slm bench $$name || exit; done

clean:  ## remove the environment and the caches; what was produced in data/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])'
	@echo 'installing into $(VENV) (a few minutes the first time)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) -e '.[dev]'
	touch $@
