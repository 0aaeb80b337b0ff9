# make demo | test | bench each set up what they need; run again, they skip what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SHELL := /bin/bash

SETUP_LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check
SETUP_FAILED = tail -n 15 $(SETUP_LOG) >&2; echo "error: setup failed: all that pip said is in $(SETUP_LOG)" >&2; exit 1
# A few lines of what pip is at, of its some hundreds.
define SETUP_PROGRESS
/^(Collecting|Processing) / { if (++count % 50 == 0) { print "  " count " packages fetched"; fflush() } }
/^Installing collected packages/ { print "  " count " packages fetched, installing them"; fflush() }
endef
export SETUP_PROGRESS

.PHONY: setup demo test test-fast test-gpu test-nightly check bench results clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole product once, small: 5 to 10 minutes on 2 cores, then a report"
	@echo "make test    lint, types and tests, on a real Ray; test-fast: those without Ray; test-gpu: on a GPU; test-nightly: the longest"
	@echo "make bench   training step and upscaling against plain loops"
	@echo "make results BENCHMARKS=FOLDER   benchmarks/RESULTS.md; PEERS=FILE.py FEATURES=VGG19 DEBLUR=FOLDER add to it"
	@echo "make setup   only the virtual environment in $(VENV)"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is older than 3.11: make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "setting up $(VENV): about 7 GB, some minutes the first time; details in $(SETUP_LOG)" >&2
	@$(PYTHON) -m venv $(VENV)
	@: > $(SETUP_LOG)
	@set -o pipefail; $(PIP) --progress-bar off --no-deps --require-hashes -r requirements.lock 2>&1 \
		| tee -a $(SETUP_LOG) | awk "$$SETUP_PROGRESS" >&2 || { $(SETUP_FAILED); }
	@$(PIP) --no-deps --no-build-isolation -e . >> $(SETUP_LOG) 2>&1 || { $(SETUP_FAILED); }
	@echo "$(VENV) is ready" >&2
	@touch $@

demo: setup
	$(BIN)/ray-sr demo -o demo

test: setup check
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not nightly"

test-fast: setup check
	$(BIN)/python -m pytest -m fast

test-gpu: setup
	$(BIN)/python -m pytest tests/gpu

test-nightly: setup check
	$(BIN)/python -m pytest -m nightly

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/ray-sr bench step
	$(BIN)/ray-sr bench upscale

results: setup
	$(BIN)/python -m benchmarks.results $(BENCHMARKS) $(if $(PEERS),--peers $(PEERS)) \
		$(if $(FEATURES),--features $(FEATURES)) $(if $(DEBLUR),--deblur $(DEBLUR)) $(if $(KEPT),--json $(KEPT)) \
		-o benchmarks/RESULTS.md

clean:
	rm -rf $(VENV) demo
