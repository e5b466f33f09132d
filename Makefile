PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The models of the tests are tiny: a second thread costs more than it gains, and a
# second process is what helps.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-large setup-tensorrt test-tensorrt test-fast lint types check
.PHONY: bench bench-methods bench-engines clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the package and all that the other targets need

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev,bench]'
	touch $@

demo: setup ## generate clips uncached and cached; figures and results go to out/
	$(BIN)/graphcache demo

test: setup ## run the tests of a commit: all but the large ones
	$(TEST) -m "not large"

test-large: setup ## run the tests that take minutes each
	$(TEST) -m large

# TensorRT for RTX builds without a GPU. torch-tensorrt-rtx asks for CUDA's torch.
setup-tensorrt: setup ## add TensorRT for RTX to .venv (NVIDIA's licence applies)
	$(BIN)/python -m pip install --no-deps 'torch-tensorrt-rtx==2.13.0'
	$(BIN)/python -m pip install 'tensorrt-rtx==1.5.0.114' packaging dllist psutil filelock

test-tensorrt: setup-tensorrt ## build engines of every method with the real builder
	$(TEST) tests/backends/test_tensorrt.py tests/engine/test_tensorrt.py \
	  tests/engine/test_tensorrt_conditions.py

test-fast: setup ## run the tests that do not compile and take seconds at most
	$(TEST) -m "not slow and not large"

lint: setup ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup ## check types
	$(BIN)/mypy

check: lint types test ## all checks, as in CI

bench: setup ## run the benchmark on the small trained model
	$(BIN)/python -m benchmarks.pab_cogvideox --size small

bench-methods: setup ## compare all methods on the small trained model
	$(BIN)/python -m benchmarks.methods

bench-engines: setup ## compare engines with the module that they come from
	$(BIN)/python -m benchmarks.engines

clean: ## remove what the targets wrote, except .venv
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
