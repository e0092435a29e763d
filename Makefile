# `make demo` and `make serve` are all a user needs; `make` alone checks everything a change must pass.
# The first target that runs makes .venv and installs into it, once, and again after the requirements change.

PYTHON ?= python3
BIN := .venv/bin
# Processes that run tests; each needs a core and 2 GB of memory.
JOBS ?= 2
STAMP := .venv/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export BENTOML_DO_NOT_TRACK := True
# Compiled modules are kept: to compile the modules again, with the checks of shapes, takes each process of tests 15 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := check
.PHONY: check demo demo-photos serve install postgres prometheus lint format test test-slow test-reference mutants bench docs clean help

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

check: lint test ## lint, types, import contracts, tests

demo: $(STAMP) ## train digits, serve, shift, adapt: the whole idea in a minute or two
	@$(BIN)/python -m service.demo

demo-photos: $(STAMP) ## a classifier of photographs meets drawings and adapts, in three minutes; PHOTOS=FOLDER shows it yours
	@$(BIN)/python -m examples.demo_photos $(if $(PHOTOS),--photos "$(PHOTOS)")

serve: $(STAMP) ## serve the bundled base sets on http://127.0.0.1:3000
	@$(BIN)/bentoml serve

install: $(STAMP) ## make .venv and install into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); name one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into .venv; the first time, PyTorch's CUDA libraries make that several gigabytes" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev,test]'
	@touch $@

postgres: ## install PostgreSQL from Debian's packages, as root, for the tests on it
	@DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql

prometheus: ## install Prometheus from Debian's packages, as root, for the tests with it
	@DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus

lint: $(STAMP) ## style, format, types, import contracts, prose
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.tools.prose

format: $(STAMP) ## format, and mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# Tiny networks lose by a second thread, most of all beside other processes of tests.
test test-slow test-reference: export OMP_NUM_THREADS ?= 1

test: $(STAMP) ## tests, without those that take more than a minute
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not reference"

test-slow: $(STAMP) ## the rest of the tests
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "slow and not alone"
	@$(BIN)/python -m pytest -q -m "slow and alone"

test-reference: $(STAMP) ## attacks against those of other libraries, on digits
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m reference

mutants: $(STAMP) ## put faults into the code, one at a time, and see if the tests notice
	@$(BIN)/python -m tests.mutants --jobs $(JOBS)

bench: $(STAMP) ## speed of search, predictions and swaps
	@$(BIN)/python -m benchmarks.search
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.swap

docs: $(STAMP) ## write the generated pages and build the site into build/site
	@$(BIN)/python -m docs.tools.reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove caches and build products; .venv and runs stay
	@rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
