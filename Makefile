# make demo   trains a small model and writes a report that compares samplers (about three minutes after installation)
# make test   lint, types and the whole test suite
# make docs   the documentation, into site/
# make bench  speed against other libraries, one table each
# make figures  redraws the pictures of the documentation and the table of methods
#
# The first of them creates .venv. Another interpreter: make PYTHON=python3.12 test. Options for pip, such as the index that
# holds the CPU build of PyTorch: make PIP_OPTIONS="--extra-index-url ..." test.

PYTHON ?= python3
PIP_OPTIONS ?=
WORKERS ?= logical

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/installed
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: help install demo test lint types docs figures bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no '$(PYTHON)' here; trueward needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "trueward needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
	  echo "Name another interpreter: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv ..."
	@$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[all,test,docs]'
	@touch $@

demo: $(STAMP)
	@if [ -f demo/digits/run.json ]; then $(BIN)/trueward train --out demo/digits --resume; \
	 else $(BIN)/trueward train --data digits --steps 800 --out demo/digits; fi
	$(BIN)/trueward compare demo/digits --samplers ddim,edm,dpm-solver,dpm-solver++ --steps 5,10,20,50 \
	  -n 256 --seeds 2 --class all --out demo/report.html
	@echo "The report is at file://$(CURDIR)/demo/report.html"

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

# one thread per worker: the networks of the tests are too small to share among threads
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --durations 10

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

figures: $(STAMP)
	$(BIN)/python docs/figures/draw.py
	$(BIN)/python docs/methods_table.py

bench: $(STAMP)
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

clean:
	rm -rf demo site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
