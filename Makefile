# Each target sets up what it needs: a virtual environment in .venv, with the tested versions.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev
# Compiled modules are kept: without them, every worker and process of the tests compiles all again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q
SHARED := -n auto --dist loadfile
SLOW := slow or browser or data or database
BF16 := tests/conformance tests/training/test_resume.py tests/signals/test_cache.py \
	tests/flows/test_stages.py

.PHONY: demo test test-bf16 test-slow test-all lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: .venv/.installed
	$(BIN)/stillhouse demo

test: .venv/.installed
	$(PYTEST) $(SHARED)

# What must hold in either precision, with `auto` as bf16. `make test` takes it as float32.
test-bf16: .venv/.installed
	STILLHOUSE_PRECISION=bf16 $(PYTEST) $(SHARED) $(BF16)

# What `make test` leaves out. Tests marked `alone` run one after another, when the others are over.
test-slow: .venv/.installed
	$(PYTEST) $(SHARED) -m '($(SLOW)) and not alone' --durations=10
	$(PYTEST) -m alone

test-all: test test-bf16 test-slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv stillhouse-demo
