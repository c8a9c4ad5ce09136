# Every target sets up what it needs: on a fresh machine `make demo` or `make test` is the only command.
PYTHON ?= python3
VENV ?= .venv
OLD_VENV ?= $(VENV)-torch-2.13
WORKERS ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLD_STAMP := $(OLD_VENV)/.installed
PIP_FLAGS := --quiet --disable-pip-version-check

# One thread per worker: two workers with all threads each are slower than either alone.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-old bench docs notebooks lint format types build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make $(VENV), with everything for development

# torch goes first and alone: what follows then finds its requirement met and fetches no other build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -r constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@

$(OLD_STAMP): pyproject.toml
	$(PYTHON) -m venv $(OLD_VENV)
	$(OLD_VENV)/bin/python -m pip install $(PIP_FLAGS) torch==2.13.0
	$(OLD_VENV)/bin/python -m pip install $(PIP_FLAGS) torch==2.13.0 pytest pytest-timeout pytest-xdist -e ".[plot,testing]"
	@touch $@

demo: $(STAMP) ## convert, verify and explain a real network
	$(BIN)/bcos-fx demo --overwrite $(DEMO_ARGS)

test: $(STAMP) ## the fast tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(STAMP) test-old ## every test, and the core on the oldest torch
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "slow or not slow" $(ARGS)

test-old: $(OLD_STAMP) ## the core's tests on torch 2.13, without torchvision
	$(OLD_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not vision and not peer" --ignore tests/test_packaging.py $(ARGS)

bench: $(STAMP) ## pages of docs/results whose code has changed; BENCH_ARGS="--data DIR" for those of real data
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

docs: $(STAMP) ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Its search needs a server: python -m http.server --bind 127.0.0.1 --directory build/site"

notebooks: $(STAMP) ## run the notebooks of docs/notebooks again, in place
	$(BIN)/python benchmarks/notebooks.py

lint: $(STAMP) ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff put the format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict, on the package
	$(BIN)/mypy

build: $(STAMP) ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove what the targets made, the environments too
	rm -rf $(VENV) $(OLD_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
