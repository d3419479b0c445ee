# `make help` lists the targets. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LABEL := .venv-label
OHIF := 3.13.2
VIEWER := .viewer/package/dist/index.html
LABEL_READY := $(LABEL)/.ready
NNUNET := .venv-nnunet
NNUNET_READY := $(NNUNET)/.ready

DATA ?=
LIMIT ?=
EPOCHS ?=
PRECISION ?=
OUT ?=
RUN ?=
STUDIES ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo serve page archive viewer test benchmarks bundle label test-label nnunet test-nnunet lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## install the pinned dependencies into .venv

$(READY): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the dependencies into $(VENV) (about 3 minutes) ..."
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt ".[serve,export,certificate,mat,dicom,completion,parquet,slurm,ray,peers,dev]"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt dynamic-network-architectures grad-cam ttach quantus
	@rm -rf build *.egg-info
	@touch $(READY)

demo: $(READY)  ## train, evaluate and explain on phantoms, or on DATA=<folder> [LIMIT=<n>] [PRECISION=<p>]; report in OUT
	$(BIN)/python -m scripts demo $(if $(OUT),--out "$(OUT)") $(if $(DATA),--folder "$(DATA)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(PRECISION),--precision $(PRECISION))

serve: $(READY)  ## the HTTP service on PORT (8000), with RUN=<run folder> or models/model.pt
	$(BIN)/python -m scripts serve --port $(or $(PORT),8000) $(if $(RUN),--run_dir "$(RUN)")

page: $(READY)  ## the page in the browser on PORT (8501), with RUN=<run folder> or models/model.pt
	$(BIN)/python -m scripts page --port $(or $(PORT),8501) $(if $(RUN),--run_dir "$(RUN)")

archive: $(READY)  ## Orthanc on PORT (8042) of this machine, with drawn heads (apt-get install orthanc orthanc-dicomweb)
	$(BIN)/python -m scripts archive --port $(or $(PORT),8042)

viewer: $(READY) $(VIEWER)  ## the same, and the OHIF viewer beside it (npm fetches it once, 50 MB)
	$(BIN)/python -m scripts archive --viewer --port $(or $(PORT),8042)

$(VIEWER):
	mkdir -p .viewer
	cd .viewer && npm pack --silent @ohif/app@$(OHIF) && tar xzf ohif-app-$(OHIF).tgz && rm ohif-app-$(OHIF).tgz
	touch $@

lint: $(READY)  ## format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

benchmarks: $(READY)  ## ratios of time beside MONAI's and numpy's; exit status 1 where one is worse than before by more than 5 %
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

bundle: $(READY)  ## release the bundle of RUN=<run folder> (or models/model.pt) in dist/, checked by MONAI's commands
	$(BIN)/python -m scripts release $(if $(RUN),--run_dir "$(RUN)") $(if $(OUT),--out "$(OUT)")

$(LABEL_READY): requirements-label.txt bundle/label_environment.py
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "MONAI Label needs Python 3.11 or 3.12 here, this is " + sys.version)'
	$(PYTHON) -m venv $(LABEL)
	@echo "Installing MONAI Label into $(LABEL) (about 3 minutes) ..."
	$(LABEL)/bin/pip install -q --disable-pip-version-check torch==2.13.0
	$(LABEL)/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-label.txt
	$(LABEL)/bin/python -m bundle.label_environment
	@touch $(LABEL_READY)

# Released again each time: nothing of an older dist/ is served.
label: $(READY) $(LABEL_READY)  ## MONAI Label with RUN=<run folder> (or models/model.pt) and sample studies in runs/label, or STUDIES=<folder or URL>
	$(MAKE) bundle RUN="$(RUN)" OUT=
	$(BIN)/python -m scripts label $(if $(STUDIES),--studies "$(STUDIES)")

test-label: $(READY) $(LABEL_READY)  ## the tests that need a real MONAI Label server
	TUMORLENS_LABEL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/label

$(NNUNET_READY): requirements-nnunet.txt
	$(PYTHON) -m venv $(NNUNET)
	@echo "Installing nnU-Net into $(NNUNET) (about 3 minutes) ..."
	$(NNUNET)/bin/pip install -q --disable-pip-version-check torch==2.13.0
	$(NNUNET)/bin/pip install -q --disable-pip-version-check -r requirements-nnunet.txt
	@touch $(NNUNET_READY)

nnunet: $(NNUNET_READY)  ## an environment with the real nnU-Net, in .venv-nnunet

test-nnunet: $(NNUNET_READY)  ## the tests that train the real nnU-Net, in an environment of their own
	OMP_NUM_THREADS=1 $(NNUNET)/bin/python -m pytest --noconftest tests/explain/test_nnunet.py tests/explain/test_nnunet_trained.py

clean:  ## remove .venv, .venv-label, .venv-nnunet and what the demo wrote
	rm -rf $(VENV) $(LABEL) $(NNUNET) .viewer runs/demo* data/phantoms build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
