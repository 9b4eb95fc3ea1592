# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Pinned, and installed first: an unpinned torch may bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
MODEL ?= lab-6m
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check quick docs lab clean

$(READY): pyproject.toml lab/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e '.[dev]' -e lab
	touch $(READY)

demo: $(READY)  ## find the retrieval heads of the bundled model and remove them
	$(BIN)/headwise demo

test: check  ## format, types and all tests
	$(BIN)/python -m pytest --durations=10

check: $(READY)
	$(BIN)/ruff check src lab tests examples benchmarks tools
	$(BIN)/mypy

quick: $(READY)  ## tests without the slow ones
	$(BIN)/python -m pytest -m "not slow"

docs: $(READY)  ## build the documentation into site/; warnings are errors
	$(BIN)/python tools/cli_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lab: $(READY)  ## train a bundled model from scratch: make lab MODEL=world-6m BOOKS=FOLDER WIKI=FILE (an hour or two on two cores)
	$(BIN)/python -m headwise_lab.recipe.train --model $(MODEL) --books $(BOOKS) $(if $(WIKI),--wiki $(WIKI)) --work .lab

clean:
	rm -rf $(VENV) headwise-out site
