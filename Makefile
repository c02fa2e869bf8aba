# Each target makes the environment it needs. The same commands stand in the README.
.PHONY: example test check benchmark fuzz docs

VENV := .venv
BIN := $(VENV)/bin

example: $(BIN)/gradscope
	$(BIN)/gradscope explain --graph forum.png examples/forum.py

test: $(BIN)/pytest
	$(BIN)/pytest

check: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

benchmark: $(BIN)/pytest
	$(BIN)/python -m benchmarks

# Random programs, bare and observed: N of them from SEED on; WITHOUT leaves ingredients out. What differs is made smaller.
N := 1
SEED := 0
WITHOUT := none
fuzz: $(BIN)/pytest
	$(BIN)/python tests/fuzz/run.py $(N) --seed $(SEED) --without $(WITHOUT) --smaller

docs: $(BIN)/sphinx-build
	$(BIN)/sphinx-build -W --keep-going -n docs docs/_build/html

$(BIN)/gradscope:
	python3 -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt . numpy  # without numpy, torch warns at every start

$(BIN)/pytest:
	python3 -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'

$(BIN)/sphinx-build:
	python3 -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[docs]' numpy
