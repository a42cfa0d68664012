# Needs Python 3.11 or newer, pip and make. Nothing is written outside this folder except pip's own
# cache. A person and CI run the same commands. To pass arguments: make run ARGS="--json".

SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip runs `rustc --version` if rustc is installed, and rustup would then write to the home folder.
export RUSTUP_HOME ?= $(CURDIR)/$(VENV)/rustup
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-faults check bench compare-peers notebook docs screenshots clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

run: $(VENV)/core  ## install, then run quickstart: generated stories → a registered model
	$(BIN)/slm run $(ARGS)

test: $(VENV)/dev  ## install, then run the tests
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/dev  ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/dev  ## run all recovery tests in full: kills, full disks, flipped bits
	$(BIN)/python -m pytest -n 0 -m 'slow or not slow' \
		-k '(faults or a_fault or kill or signals or overlap) and not defaults and not grammar' \
		--ignore=tests/orchestration --ignore=tests/cluster --ignore=tests/server \
		--ignore=tests/training/test_hosts.py --ignore=tests/training/test_nodes.py

check: $(VENV)/dev  ## check format, lint, types, import layers, recipes and deployments
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=.. ../$(BIN)/mypy --config-file ../pyproject.toml \
		--cache-dir ../.mypy_cache *.py
	$(BIN)/lint-imports
	$(BIN)/slm check

bench: $(VENV)/dev  ## run the benchmarks: our figures next to those of peers
	for name in encode train sample serve checkpoint mirror; do $(BIN)/slm bench $$name || exit; done

screenshots: $(VENV)/dev  ## make the pictures of docs/ from a small run, by a headless Chromium
	$(BIN)/python docs/screenshots.py

compare-peers: $(VENV)/dev  ## kill and resume next to Trainer and a notebook: docs/compare-peers.md
	$(BIN)/python benchmarks/compare_peers.py --page docs/compare-peers.md

notebook: $(VENV)/dev  ## execute docs/quickstart.ipynb anew, and keep its outputs in it
	$(BIN)/python benchmarks/quickstart_notebook.py

docs: $(VENV)/docs  ## build the documentation site: build/docs/site/index.html
	$(BIN)/python docs/site/build.py

clean:  ## remove the environment and the caches; data/ is kept
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])'
	@echo 'installing into $(VENV) (a few minutes the first time)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[clean,grammar]'
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/docs: $(VENV)/core
	$(INSTALL) -e '.[docs]'
	touch $@
