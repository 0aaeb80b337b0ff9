# make demo | test | bench each set up what they need; run again, they skip what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check bench results clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole product once, small: about 5 minutes on 2 cores, then a report"
	@echo "make test    lint, types and tests, on a real Ray"
	@echo "make bench   training step and upscaling against plain loops"
	@echo "make results BENCHMARKS=FOLDER   benchmarks/RESULTS.md; PEERS=FILE.py FEATURES=VGG19 DEBLUR=FOLDER add to it"
	@echo "make setup   only the virtual environment in $(VENV)"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is older than 3.11: make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "setting up $(VENV): about 7 GB, some minutes the first time" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/ray-sr demo -o demo

test: setup check
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/ray-sr bench step
	$(BIN)/ray-sr bench upscale

results: setup
	$(BIN)/python -m benchmarks.results $(BENCHMARKS) $(if $(PEERS),--peers $(PEERS)) \
		$(if $(FEATURES),--features $(FEATURES)) $(if $(DEBLUR),--deblur $(DEBLUR)) -o benchmarks/RESULTS.md

clean:
	rm -rf $(VENV) demo
