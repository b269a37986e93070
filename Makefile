# The project's few commands. Each makes what it needs: `make demo` works on a fresh clone.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test lint bench torture docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

demo: $(VENV)/.installed
	bash data/demo.sh $(BIN)/rwkv-embed

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -m 'not slow and not gpu'

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

torture: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed
	$(BIN)/python -m api.docs docs/cli.md

clean:
	rm -rf $(VENV) build *.egg-info
