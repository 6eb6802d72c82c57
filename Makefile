# Every target sets itself up first. Only Python >= 3.11 and make are needed on the machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests run side by side, each with one thread for its numbers; those with processes of their own mostly wait for them.
WORKERS ?= 2
WAITING_WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-services test-all check format demo dev bench gpu soak clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt packaging/setup_venv.py
	$(PYTHON) packaging/setup_venv.py $(VENV)
	@touch $@

test: $(READY) ## quick tests
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(READY) ## real trainings, signals, several processes
	$(PYTEST) -n $(WAITING_WORKERS) --dist worksteal -m slow

test-services: $(READY) ## Slurm, Ray, PostgreSQL and a browser, installed from Debian's packages
	packaging/install_services.sh
	$(PYTEST) -n $(WAITING_WORKERS) --dist loadfile -m services --services

test-all: test test-slow test-services ## every test

check: $(READY) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(READY) ## sample scenes -> index -> quality -> a small model, through Dagster
	$(BIN)/python -m moge_pipeline.demo

dev: $(READY) ## Dagster and MLflow user interfaces
	$(BIN)/python -m moge_pipeline.dev

bench: $(READY) ## measure and print tables
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.pipeline

gpu: $(READY) ## tests and benchmarks of a real GPU, under eight minutes, results in gpu-results
	PYTHON=$(abspath $(BIN)/python) benchmarks/gpu.sh

soak: $(READY) ## what takes half an hour: whether a training in bf16 learns as much as one in float32
	$(BIN)/python -m benchmarks.precision_training

clean: ## remove caches and the environment; data, workspaces and run history stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
