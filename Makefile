# Two commands: `make demo` and `make test`. Both start with `make setup`, and reuse what is there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Real logs beside the checkout, when there are any; MIXPOL_DATA overrides.
export MIXPOL_DATA ?= $(wildcard ../shared/data)

.PHONY: help setup demo test bench lint format clean
help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/'

$(VENV)/.toolchain: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools into $(VENV) ..."
	$(PIP) torch numpy scikit-build-core cmake ninja
	@touch $@

# No build isolation: an isolated build would fetch a second torch and compile against that one.
$(VENV)/.built: $(VENV)/.toolchain pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	@echo "building the kernels, installing the development set ..."
	$(PIP) --no-build-isolation --editable '.[models,dev]'
	@touch $@

setup: $(VENV)/.built ## make .venv, install, build
	@$(BIN)/python -m mixpol_kernels.info

demo: $(VENV)/.built ## the main job: train DIN four ways, print and save tables and pictures
	$(BIN)/mixpol demo

test: $(VENV)/.built lint ## every test
	$(BIN)/python -m pytest

bench: $(VENV)/.built ## kernel microbenchmarks (pytest-benchmark)
	$(BIN)/python -m pytest benchmarks --benchmark-only

lint: $(VENV)/.built ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h')

format: $(VENV)/.built ## rewrite with ruff and clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h')

clean: ## remove the environment and build output
	rm -rf $(VENV) build
