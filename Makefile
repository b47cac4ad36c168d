# make demo | test | sanitize | bench | gpu | format | lint | check-cuda | wheel | test-wheel | clean
# make build-op OP=rq_spline     compiles the op's kernels alone and links them with what is there
# make test-op OP=rq_spline      builds it so and runs its tests on every floor that this machine has
#
# Needs Python 3.11 or newer with venv, a C++17 compiler and make; the first call makes .venv and installs the rest.
# make PYTHON=/path/to/python ... uses an environment of yours instead: fastgen is installed into it, editable, and the
# [dev] extra must be there already. make TORCH=... installs another torch into .venv.

TORCH := torch==2.13.0
SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

ifeq ($(origin PYTHON),undefined)
  PYTHON := .venv/bin/python
  ENVIRONMENT := .venv/installed
  GPU_PYTHON := python3
else
  GPU_PYTHON := $(PYTHON)
  ENVIRONMENT := build/installed-$(subst /,-,$(PYTHON))
endif
EXTENSION := build/extension-$(subst /,-,$(PYTHON))
PYTEST := $(PYTHON) -m pytest

.PHONY: demo test test-no-extension test-interpreter build-op test-op sanitize bench gpu format lint check-cuda wheel test-wheel clean
.DEFAULT_GOAL := demo

.venv/installed: setup.py pyproject.toml
	@for python in python3 python3.13 python3.12 python3.11; do \
	  $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done || { echo 'fastgen needs Python 3.11 or newer, with venv (on Debian: apt install python3-venv)' >&2; exit 1; }; \
	test -x .venv/bin/python || $$python -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade 'setuptools>=77' wheel ninja 'pybind11>=2.13' numpy
	.venv/bin/python -m pip install '$(TORCH)'
	.venv/bin/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	@touch $@

build/installed-%: setup.py pyproject.toml
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e .
	@mkdir -p build && touch $@

$(EXTENSION): $(SOURCES) $(ENVIRONMENT)
	$(PYTHON) -W ignore setup.py --quiet build_ext --inplace
	@mkdir -p build && touch $@

demo: $(EXTENSION)
	$(PYTHON) -m fastgen.demo

test: test-no-extension test-interpreter
	$(PYTEST) -n 2 --dist loadfile

# What must work where nothing could be compiled: everything but what is the same anywhere, the derivatives of the reference
# and the larger cases of the contract, which the main run asks of the reference, too.
test-no-extension: $(EXTENSION)
	FASTGEN_NO_EXTENSION=1 $(PYTEST) -n 2 -q -rfE -m 'not interpreter and not needs_extension' \
	  -k 'not (gradcheck and reference) and (small or not test_contract.py)' tests/ops tests/test_import.py tests/test_layout.py

# TRITON_INTERPRET=1 must be there before the first import of Triton: a process of its own
test-interpreter: $(EXTENSION)
	TRITON_INTERPRET=1 $(PYTEST) -n 2 -q -m interpreter tests/ops

build-op test-op: export FASTGEN_OP = $(OP)
build-op: $(ENVIRONMENT)
	@test -n '$(OP)' || { echo 'OP must be the name of an op, as in make build-op OP=rq_spline' >&2; exit 1; }
	$(PYTHON) -W ignore setup.py --quiet build_ext --inplace

# an op without C++ sources of its own takes the extension as it is
test-op: $(if $(wildcard csrc/*/$(OP)),build-op,$(ENVIRONMENT))
	@test -f 'tests/ops/test_$(OP).py' || { echo 'OP must be an op with tests/ops/test_OP.py, got $(OP)' >&2; exit 1; }
	$(PYTEST) -q -m 'not interpreter' $(OF_OP)
	FASTGEN_NO_EXTENSION=1 $(PYTEST) -q -m 'not interpreter and not needs_extension' $(OF_OP)
	TRITON_INTERPRET=1 $(PYTEST) -q -m interpreter $(OF_OP) || test $$? -eq 5  # 5: no test, as the op has no Triton kernel
OF_OP = tests/ops/test_$(OP).py tests/ops/test_contract.py tests/ops/test_raw_calls.py tests/test_layout.py \
  -k 'test_$(OP).py or [$(OP)- or [$(OP)]'

# A copy of the tree, with its own extension, under AddressSanitizer and UBSan; then another under ThreadSanitizer. PyTorch is
# not built with them, and Python keeps memory until its end: leaks are not looked for.
SANITIZED = cd build/sanitize-$(1) && LD_PRELOAD="$$(gcc -print-file-name=lib$(2).so) $$(gcc -print-file-name=libstdc++.so)" \
  OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=8192 UBSAN_OPTIONS=print_stacktrace=1 \
  TSAN_OPTIONS=report_signal_unsafe=0:ignore_noninstrumented_modules=1 $(abspath $(PYTHON))
FUZZ := tests/ops/test_raw_calls.py tests/files

build/sanitize-%: $(SOURCES) $(ENVIRONMENT)
	mkdir -p $@ && git ls-files -z | xargs -0 cp --parents -t $@
	cd $@ && FASTGEN_SANITIZE=$(subst address,address$(comma)undefined,$*) $(abspath $(PYTHON)) -W ignore setup.py --quiet build_ext --inplace
	@touch $@
comma := ,

sanitize: build/sanitize-address build/sanitize-thread
	$(call SANITIZED,address,asan) -m tests.ops.raw_calls 2000
	$(call SANITIZED,address,asan) -m pytest -q $(FUZZ) tests/generate/test_cpu_machine.py tests/generate/test_interrupts.py
	$(call SANITIZED,thread,tsan) -m pytest -q tests/generate/test_cpu_machine.py tests/generate/test_threads.py -k 'not memory and not had'
	FASTGEN_SANITIZE=thread $(PYTEST) -q tests/generate/test_pool.py

bench: $(EXTENSION)
	$(PYTEST) -s bench --benchmark-enable --benchmark-group-by=group
	FASTGEN_BENCH_ALLOCATOR=default $(PYTEST) -s bench/ops --benchmark-enable --benchmark-group-by=group

# on a machine with an NVIDIA GPU, nvcc and no network, with a python3 (or PYTHON=...) that has torch and pytest
gpu:
	$(GPU_PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e .
	$(GPU_PYTHON) -m pytest -q -o addopts=--import-mode=importlib -W default -m gpu tests/ops
	$(GPU_PYTHON) -m bench.ops_table --device cuda

CPP := '*.cpp' '*.h' '*.cu'
TOOLS = $(abspath $(dir $(PYTHON))):$(PATH)

format: $(ENVIRONMENT)
	$(PYTHON) -m ruff format .
	git ls-files -z $(CPP) | PATH="$(TOOLS)" xargs -0 clang-format -i

lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	git ls-files -z $(CPP) | PATH="$(TOOLS)" xargs -0 clang-format --dry-run -Werror
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m mypy

check-cuda: $(EXTENSION)
	$(PYTHON) .ci/check_cuda.py

# The wheel is for this version of Python (pybind11 needs all of its C API), for any torch from 2.11 on, as the extension uses
# the stable ABI only, and for every Linux whose C and C++ libraries are as new as the symbols that the extension takes from
# them: auditwheel reads them and writes the tag. What is CUDA C++ stays out, since it would need a torch with CUDA.
wheel: $(ENVIRONMENT)
	rm -rf build/wheel build/lib.* build/bdist.*
	FASTGEN_CUDA=0 $(PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel/linux .
	PATH="$(TOOLS)" $(PYTHON) -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  --wheel-dir build/wheel build/wheel/linux/*.whl
	$(PYTHON) -m auditwheel show build/wheel/*.whl
	mkdir -p dist && cp build/wheel/*.whl dist

# In a new environment outside the tree. make test-wheel WHEEL_TORCH=torch==2.11.0 tries another torch, which pip may well
# fetch with gigabytes of CUDA.
WHEEL_TORCH := $(TORCH)
test-wheel: wheel
	environment=$$(mktemp -d) && trap 'rm -rf "$$environment"' EXIT && $(PYTHON) -m venv "$$environment" && \
	"$$environment/bin/python" -m pip install --quiet '$(WHEEL_TORCH)' build/wheel/*.whl && \
	cp .ci/smoke.py "$$environment" && cd "$$environment" && bin/python -W error smoke.py

clean:
	rm -rf build dist *.egg-info fastgen/_C*.so .pytest_cache .hypothesis .ruff_cache .mypy_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
