# Each target sets up what it needs: a virtual environment in .venv, with the tested versions.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/stillhouse demo

test: .venv/.installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-all: .venv/.installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m ''

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv stillhouse-demo
