# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Pinned, and installed first: an unpinned torch may bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
MODEL ?= lab-6m
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
LOWEST = .venv-lowest

.PHONY: demo test check quick lowest bare docs lab clean

# constraints.txt pins every package, so that a release of tomorrow cannot break a fresh clone.
$(READY): pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]' -e lab
	touch $(READY)

demo: $(READY)  ## find the retrieval heads of a real model (smollm2), ablate them, and write a page
	$(BIN)/headwise demo

test: check  ## format, types and all tests
	$(BIN)/python -m pytest --durations=10

check: $(READY)
	$(BIN)/ruff check src lab tests examples benchmarks tools
	$(BIN)/mypy

quick: $(READY)  ## tests without the slow ones (two and a half minutes on two idle cores)
	$(BIN)/python -m pytest -m "not slow"

lowest: constraints-lowest.txt  ## tests without the slow ones, on the lowest allowed versions
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --upgrade pip
	$(LOWEST)/bin/pip install --quiet $(TORCH)
	$(LOWEST)/bin/pip install --quiet -c constraints-lowest.txt -e '.[test]' -e lab
	$(LOWEST)/bin/python -m pytest -m "not slow" -W default

bare:  ## the wheel in a bare environment, without any extra
	bash tests/integrations/check_bare_install.sh $(PYTHON)

docs: $(READY)  ## build the documentation into site/; warnings are errors
	$(BIN)/python tools/cli_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lab: $(READY)  ## train a bundled model from scratch: make lab MODEL=world-6m BOOKS=FOLDER WIKI=FILE (an hour or two on two cores)
	$(BIN)/python -m headwise_lab.recipe.train --model $(MODEL) --books $(BOOKS) $(if $(WIKI),--wiki $(WIKI)) --work .lab

clean:
	rm -rf $(VENV) $(LOWEST) headwise-out site
