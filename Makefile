# `make demo` and `make test` work on a fresh clone: both make the environment first.
VENV ?= .venv
PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
BIN := $(VENV)/bin

.PHONY: demo photos test test-slow test-oldest env lint docs wheel clean

# The same lines are in README.md.
define NEXT

The runs are in runs/demo. Next:

. $(BIN)/activate
python -m finetune.report runs/demo
python -m finetune.demo --run runs/demo/mt
python -m finetune.predict data/world/images/pairs/000002.png --run runs/demo/mt --task vqa --text 'What color is the star?'
endef
export NEXT

demo: env
	$(BIN)/python -m pretrain.run --epochs 6 --out runs/demo/pretrain --resume
	$(BIN)/python -m finetune.mt --iterations 60 --init runs/demo/pretrain --out runs/demo/mt --resume
	$(BIN)/python -m finetune.st --task refcoco --epochs 4 --init runs/demo/mt --out runs/demo/st-refcoco --resume
	@echo "$$NEXT"

# The photographs are the user's own (docs/photos.md): make photos PHOTOS=DIR WEIGHTS=FILE BERT=DIR FLAGS='--seed 1'
photos: env
	@test -n "$(PHOTOS)" -a -n "$(WEIGHTS)" -a -n "$(BERT)" || \
		{ echo "give PHOTOS=DIR, WEIGHTS=FILE and BERT=DIR (docs/photos.md)" >&2; exit 2; }
	$(BIN)/python -m benchmarks.photos $(PHOTOS) --weights $(WEIGHTS) --bert $(BERT) $(FLAGS)

# One thread a process: the tests start processes of their own, and threads that wait for each other would slow them all.
# worksteal: neighbouring tests, which share fixtures, run in one process, and none is idle at the end.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: env lint
	$(PYTEST)

test-slow: env
	$(PYTEST) -m slow

# With the oldest versions that pyproject.toml allows, in a clone, because the environment and the operators are in the tree.
# Without lint, because mypy reads the annotations of the installed torch and numpy.
test-oldest:
	rm -rf build/oldest
	git clone --quiet . build/oldest
	$(MAKE) -C build/oldest env REQUIREMENTS=tests/oldest.txt
	cd build/oldest && $(PYTEST)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# The documentation with the API reference, from docs/ and docstrings, in build/site; needs no network.
docs: env
	$(BIN)/python -m mkdocs build
	@echo build/site/index.html

# A wheel in dist/, unpacked and checked outside of the repository. -P: not what lies in the directory.
wheel: env
	rm -rf dist build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. $(abspath $(BIN))/python -P -m ops
	@ls dist

env: $(VENV)/installed

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit("$(PYTHON) is Python " + found + "; Python 3.11 or newer is needed, such as: make PYTHON=python3.11 ...")
endef
export CHECK_PYTHON

# torch first and alone: what comes after builds and resolves against it.
$(VENV)/installed: $(REQUIREMENTS) setup.py pyproject.toml $(wildcard ops/csrc/*)
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' $(REQUIREMENTS))
	$(BIN)/python -m pip install --quiet -r $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
