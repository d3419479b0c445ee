# `make help` lists the targets. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

DATA ?=
LIMIT ?=
EPOCHS ?=
OUT ?=

# glibc hands every large tensor back to the system and takes page faults to get it again: 37 % of a training step.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 17179869184
export MALLOC_TOP_PAD_ := 268435456

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## install the pinned dependencies into .venv

$(READY): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the dependencies into $(VENV) (about 2 minutes) ..."
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt ".[dev]"
	@rm -rf build *.egg-info
	@touch $(READY)

demo: $(READY)  ## train, evaluate and explain on phantoms, or on DATA=<folder> [LIMIT=<n>]; report in OUT
	$(BIN)/python -m scripts.demo $(if $(OUT),--out "$(OUT)") $(if $(DATA),--data "$(DATA)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(EPOCHS),--epochs $(EPOCHS))

lint: $(READY)  ## format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

clean:  ## remove .venv and what the demo wrote
	rm -rf $(VENV) runs/demo* data/phantoms build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
