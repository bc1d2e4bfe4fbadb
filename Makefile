# Each target sets up what it needs: a virtual environment in .venv, with the tested versions.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev
# Compiled modules are kept: without them, every worker and process of the tests compiles all again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q
SHARED := -n auto --dist loadfile
SLOW := slow or browser or data or database

.PHONY: demo test test-slow test-all lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: .venv/.installed
	$(BIN)/stillhouse demo

test: .venv/.installed
	$(PYTEST) $(SHARED)

# What `make test` leaves out. Tests marked `alone` run one after another, when the others are over.
test-slow: .venv/.installed
	$(PYTEST) $(SHARED) -m '($(SLOW)) and not alone' --durations=10
	$(PYTEST) -m alone

test-all: test test-slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv stillhouse-demo
