# Every target does its own set-up in .venv, once, and again only when the requirements change.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Two test processes on two cores: more threads in each would only wait for one another.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-system lint check clean

help:
	@echo "make setup   create .venv with the exact versions of constraints.txt"
	@echo "make demo    a small federation on synthetic sites, offline; its result is runs/demo/comparison.html"
	@echo "make test    the tests that take a few minutes"
	@echo "make test-slow  the tests that train models, kill runs or compare with other implementations at full size; ten minutes"
	@echo "make test-system  real processes over mutual TLS on this machine; writes benchmarks/results/system.json"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make check   test, test-slow and lint"
	@echo "make clean   remove caches and builds; .venv and runs stay"

setup: $(STAMP)

# torch by itself first, at its exact version: no other package may choose it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "pFedSAM needs Python 3.11 or newer, and '$(PYTHON)' is not; name another: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/pfedsam demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not system"

test-system: $(STAMP)
	rm -f benchmarks/results/system.json
	$(BIN)/python -m pytest -n 0 -m system tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test lint test-slow

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
