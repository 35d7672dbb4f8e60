# `make demo` and `make test` work on a fresh clone: both make the environment first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test env lint clean

demo: env
	$(BIN)/python -m pretrain.run --epochs 6 --out runs/demo-pretrain --resume
	$(BIN)/python -m finetune.mt --iterations 60 --init runs/demo-pretrain --out runs/demo-mt --resume
	$(BIN)/python -m finetune.st --task refcoco --epochs 4 --init runs/demo-mt --out runs/demo-st --resume

test: env lint
	$(BIN)/python -m pytest -n 2

lint: env
	$(BIN)/ruff check .

env: $(VENV)/installed

# torch first and alone: what comes after builds and resolves against it.
$(VENV)/installed: requirements.txt setup.py $(wildcard ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
