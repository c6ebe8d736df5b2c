PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
GALLERY ?= gallery
LISTEN ?= listen
DATA ?= $(JAXSPARSE_DATA)/test
# By default the pinned versions; lowest-direct and highest are the ends of pyproject.toml's ranges.
RESOLUTION ?= pinned
UV_VERSION = 0.13.9
PIP_VERSION = 26.3

BIN = $(VENV)/bin
# Hints that newer versions of the tools exist.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
PIP = $(BIN)/python -m pip -qq
# uv leaves the locks of its builds in the temporary folder.
UV_TMPDIR = $(abspath $(VENV))/tmp
UV = TMPDIR=$(UV_TMPDIR) $(BIN)/python -m uv --quiet
INSTALL = $(UV) pip install --python $(BIN)/python --compile-bytecode \
	--build-constraints requirements-build.txt
COMPILE = $(UV) pip compile --upgrade --universal --python-version 3.11 \
	--no-emit-index-url --no-emit-find-links --no-annotate \
	--custom-compile-command "make pins"
MAKEFLAGS += --no-print-directory
# Three processes of up to 3 GB, since some tests wait for programs; a file's share what they compile.
WORKERS = -n 3 --dist loadfile
# XLA's defaults; tests compile more quickly (tests/conftest.py).
AVX2 = XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true \
	--xla_cpu_max_isa=AVX2"
# Whatever asks for it by the marker; files named one by one are collected in a second.
NUMERICAL = $(shell grep -l 'mark.optimised' tests/test_*.py)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo gallery listen test lint types test-fast test-optimised test-slow bench bench-gpu format pins \
	package clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=$(PYTHON) makes the virtual environment VENV=$(VENV)"

setup: $(VENV)/.ready  ## Make the virtual environment (the others do so by themselves)

demo: $(VENV)/.ready  ## Code a sentence at 3, 6 and 12 kbit/s, write the page demo/index.html
	$(BIN)/jaxsparse demo --out $(DEMO) --force

gallery: $(VENV)/.ready  ## Fill in masks of two kinds, by two decoders, for the page gallery/index.html
	$(BIN)/python -m eval.gallery --out $(GALLERY) --force

listen: $(VENV)/.ready  ## Code clips of DATA with this codec and others for the page listen/index.html
	$(BIN)/python -m benchmarks.codecs.listen --data "$(DATA)" --out $(LISTEN) --force

# Types are checked on one core while librosa is compiled on another.
test: lint  ## Lint, check types and run the tests
	@$(MAKE) $(VENV)/.numba & compiling=$$!; $(MAKE) types && wait $$compiling
	@$(MAKE) test-fast
	@$(MAKE) test-optimised

lint: $(VENV)/.ready  ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.ready  ## Check types
	$(BIN)/pyright --pythonpath $(BIN)/python

test-fast: $(VENV)/.numba  ## Run all but the numerical tests, or all of FILES="tests/test_stft.py ..."
	$(BIN)/python -m pytest $(or $(FILES),$(WORKERS) -m "not slow and not optimised")

test-optimised: $(VENV)/.numba  ## Run the numerical tests, compiled for AVX2 as users' code is
	$(AVX2) $(BIN)/python -m pytest $(WORKERS) -m "optimised and not slow" $(NUMERICAL)

test-slow: $(VENV)/.numba  ## Run the tests that take long: whole evaluations, fifty kills, an hour of audio
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not optimised"
	$(AVX2) $(BIN)/python -m pytest $(WORKERS) -m "slow and optimised" $(NUMERICAL)

bench: $(VENV)/.peers  ## Compare the parts with peers (installed if absent), and time metrics
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.subset_search --json
	$(BIN)/python -m benchmarks.metrics --json

# The first line takes about ten minutes, and says most.
bench-gpu: $(VENV)/.peers  ## The thesis' training and searches on a GPU, and the parts beside PyTorch
	$(BIN)/python -m benchmarks.whole --json
	$(BIN)/python -m benchmarks.speed --threads 8

$(VENV)/.peers: $(VENV)/.ready
	@$(BIN)/python -c "import evosax, pymoo, torch" 2>/dev/null || $(PIP) install \
		--build-constraint requirements-build.txt --constraint requirements.txt -e ".[benchmark]"
	@touch $@

format: $(VENV)/.ready  ## Rewrite the files in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

pins: $(BIN)/python  ## Resolve the pinned versions anew
	$(COMPILE) --extra all --extra dev --extra tensorboard pyproject.toml -o requirements.txt
	printf '%s\n' cython numpy pytest-runner setuptools | $(COMPILE) -o requirements-build.txt -

package: $(VENV)/.ready  ## Build wheel and sdist into dist/, and try the wheel where nothing is compiled
	TMPDIR=$(UV_TMPDIR) $(BIN)/python tools/check_package.py

clean:  ## Remove the virtual environment and everything generated
	rm -rf $(VENV) $(DEMO) $(GALLERY) $(LISTEN) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/.ready: $(BIN)/python requirements.txt requirements-build.txt pyproject.toml
	@echo "Installing the packages ($(RESOLUTION)) into $(VENV); the first time takes a minute"
	@mkdir -p $(UV_TMPDIR)
	$(PIP) install pip==$(PIP_VERSION) uv==$(UV_VERSION)
ifeq ($(RESOLUTION),pinned)
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
else
	$(INSTALL) --resolution $(RESOLUTION) -e ".[all,dev,tensorboard]"
endif
	@touch $@

# librosa compiles for 20 s where it was never used, in each process that uses it.
$(VENV)/.numba: $(VENV)/.ready
	@$(BIN)/python -c "import librosa, numpy; librosa.feature.mfcc(y=numpy.zeros(4096), sr=16000); \
		librosa.istft(librosa.stft(numpy.zeros(4096)))"
	@touch $@

# pesq is compiled when it is installed, hence the compiler and Python's headers.
$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "jaxsparse needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
			"make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
		echo "the extra 'eval' needs a C compiler to build the package 'pesq':" \
			"install gcc or clang (or do without it: pip install .)" >&2; exit 1; }
	@$(PYTHON) -c "import os, sys, sysconfig; \
		sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))" || { \
		echo "the extra 'eval' needs Python's headers to build the package 'pesq':" \
			"install python3-dev or the like (or do without it: pip install .)" >&2; exit 1; }
	@mkdir -p $(UV_TMPDIR)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed: install python3-venv or the like" >&2; exit 1; }
