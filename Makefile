# Two commands: `make demo` and `make test`. Both start with `make setup`, and reuse what is there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made on first import: most of what torch has is never imported.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
# Real logs beside the checkout, when there are any; MIXPOL_DATA overrides.
export MIXPOL_DATA ?= $(wildcard ../shared/data)

.PHONY: help setup demo test test-fresh test-asan test-mutants test-gpu test-abi test-cuda-link gpu-compile gpu-replay cuda-compile instructions bench docs wheel lint format schemas clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/'

$(VENV)/.toolchain: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools into $(VENV) ..."
	$(PIP) torch numpy scikit-build-core cmake ninja
	@touch $@

# No build isolation: an isolated build would fetch a second torch and compile against that one.
$(VENV)/.built: $(VENV)/.toolchain pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	@echo "building the kernels, installing the development set ..."
	$(PIP) --no-build-isolation --editable '.[models,dev,docs,release]'
	@touch $@

setup: $(VENV)/.built ## make .venv, install, build
	@$(BIN)/python -m mixpol_kernels.info

demo: $(VENV)/.built ## the main job: train DIN four ways, print and save tables and pictures
	$(BIN)/mixpol demo

# What only tests need, and FBGEMM for the benchmarks. recbole asks for a ray that fuxictr is too new for, and TorchRec for
# FBGEMM's CUDA build, so that their own needs are named one by one.
$(VENV)/.tests: $(VENV)/.built
	@echo "installing what the tests need: triton, and the frameworks that have drop-ins ..."
	$(PIP) triton fuxictr deepctr-torch torch-rechub tensorboard colorlog colorama texttable tabulate psutil
	$(PIP) --no-deps recbole thop fbgemm-gpu-cpu torchrec
	$(PIP) tensordict pyre-extensions iopath
	@touch $@

# Two processes: most tests keep one core busy. The Triton kernels are interpreted, which a process does or does not:
# their part has a command of its own, and runs whatever the first one found. Lint runs beside.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(VENV)/.tests ## every test, and lint
	@mkdir -p build; failed=; \
	$(MAKE) --no-print-directory lint > build/lint.log 2>&1 & lint=$$!; \
	$(PYTEST) --durations 15 --durations-min 10 || failed="$$failed tests"; \
	$(PYTEST) tests/triton_kernels || failed="$$failed tests/triton_kernels"; \
	wait $$lint || failed="$$failed lint"; \
	cat build/lint.log; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

N ?= 1
test-fresh: $(VENV)/.tests ## the tests that draw their inputs, on N fresh draws (N=5, ARGS="tests/ops -k budget")
	$(BIN)/python tests/fresh.py $(N) $(ARGS)

# Also NaN into every fresh buffer. Left out: what needs address space or compilers of its own.
SANITIZERS = $$(for f in libasan libubsan libstdc++; do $(CXX) -print-file-name=$$f.so; done | tr '\n' ' ')
test-asan: $(VENV)/.built ## the op tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/asan -G Ninja -DCMAKE_BUILD_TYPE= -DMIXPOL_SANITIZE=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python > build/asan.log || { cat build/asan.log; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/asan
	MIXPOL_LIBRARY=build/asan/_C.so LD_PRELOAD="$(SANITIZERS)" \
	ASAN_OPTIONS=detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=16777216 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest tests/ops -p no:cacheprovider $(ASAN_SKIP) $(TESTS)
ASAN_SKIP := $(foreach name,large compile export,--ignore=tests/ops/test_$(name).py)

FAULTS ?= *
test-mutants: $(VENV)/.tests ## plant faults, one at a time, and expect the tests to fail (FAULTS="*softmax*"; half an hour)
	$(BIN)/python tests/mutants --only "$(FAULTS)" --jobs 2

test-gpu: $(VENV)/.tests ## the op tests on a GPU, where there is one
	$(BIN)/python -m pytest -n 8 tests/gpu -rs

TORCH ?= 2.10.0 2.11.0 2.14.1
test-abi: $(VENV)/.built ## the compiled wheel under other releases of torch (TORCH="...", INDEX=...; gigabytes)
	MIXPOL_ABI_TORCH="$(TORCH)" MIXPOL_ABI_INDEX="$(INDEX)" $(BIN)/python -m pytest tests/test_abi.py -rs

gpu-compile: $(VENV)/.built ## compile the Triton kernels for every GPU they ship for, write benchmarks/GPU_COMPILE.md and GPU_STAGED.md
	$(BIN)/python benchmarks/gpu_compile.py
	$(BIN)/python benchmarks/gpu_staged.py

# Beside the pinned Triton the one of an older torch, in a folder of its own: they make different machine code.
OLDER_TRITON ?= 3.6.0
build/triton-$(OLDER_TRITON): $(VENV)/.tests
	$(BIN)/pip --disable-pip-version-check install --quiet --no-compile --no-deps --target $@ triton==$(OLDER_TRITON)

REPLAY := PYTHONPATH=benchmarks $(BIN)/python -m gpu_replay
gpu-replay: $(VENV)/.tests build/triton-$(OLDER_TRITON) ## what the Triton kernels would cost on an H200, gated (ARGS="--write", "--tune ...")
	failed=; $(REPLAY) $(ARGS) || failed=1; \
	$(REPLAY) --triton build/triton-$(OLDER_TRITON) $(ARGS) || failed=1; \
	test -z "$(ARGS)" || exit $${failed:-0}; \
	$(REPLAY) --calibrate || failed=1; exit $${failed:-0}

CUDA_TORCH ?= 2.14.1
test-cuda-link: $(VENV)/.built ## the CUDA kernels against a CUDA build of torch, without a GPU (CUDA_TORCH="..."; gigabytes)
	MIXPOL_CUDA_TORCH="$(CUDA_TORCH)" $(BIN)/python -m pytest tests/cuda_host/test_cuda_link.py -rs

instructions: $(VENV)/.built ## count the kernels' instructions (valgrind), write benchmarks/instructions.json
	$(BIN)/python benchmarks/instructions.py --write

cuda-compile: $(VENV)/.built ## what nvcc makes of the CUDA kernels: benchmarks/CUDA_COMPILE.md
	$(BIN)/python benchmarks/cuda_compile.py

bench: $(VENV)/.built ## kernel microbenchmarks (pytest-benchmark)
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Not --quiet: strict counts the warnings that are printed.
docs: $(VENV)/.built ## the documentation, into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs/mkdocs.yml
	@echo "open build/site/index.html"

wheel: $(VENV)/.built ## source archive, compiled and pure wheel into dist/, checked
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --no-isolation --sdist --wheel --outdir dist .
	$(BIN)/python -m build --no-isolation --wheel --config-setting=wheel.cmake=false --outdir dist .
	$(BIN)/python -m check_wheel_contents dist
	$(BIN)/python -m auditwheel show dist/*-linux_*.whl

lint: $(VENV)/.built ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/.built ## rewrite with ruff and clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

schemas: ## pin the ops' signatures after a change that is meant
	$(BIN)/python -m mixpol_kernels.testing.schemas > csrc/schemas.new && mv csrc/schemas.new csrc/schemas.inc

clean: ## remove the environment and build output
	rm -rf $(VENV) build dist
