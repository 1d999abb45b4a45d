# `make book` and `make test` need only python3, make and npm: they set up the rest.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
# Tests that start processes and wait leave a core idle: one worker more than cores.
WORKERS ?= 3
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Some containers set this. Then each of the hundred processes of a test run would compile
# torch and the rest anew, for two to four seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup book test test-fast test-data lint units layers small site \
  browser compare nbval nbval-live refs serve pdf bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready node_modules/ready

# uv installs in a third of pip's time; pip's settings of this machine hold for it, and
# where uv cannot do it (an index that only pip's files name), pip does.
$(if $(PIP_FIND_LINKS),$(eval export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)))
$(if $(PIP_INDEX_URL),$(eval export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)))
$(if $(PIP_CERT),$(eval export SSL_CERT_FILE ?= $(PIP_CERT)))
INSTALL = install() { $(BIN)/uv pip install --quiet --python $(BIN)/python "$$@" || \
  $(BIN)/python -m pip install --quiet "$$@"; }; install

# torch first and exactly: a resolver left alone would fetch another build of it.
.venv/ready: pyproject.toml constraints.txt peers.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/python -m pip uninstall -qq --yes geolib # its name before 0.2
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -c constraints.txt -e '.[book,test,sweep,bench]'
	$(INSTALL) --no-deps -r peers.txt
	touch $@

node_modules/ready: package.json package-lock.json
	npm ci --no-audit --no-fund --silent
	touch $@

book: setup ## execute every chapter and render the site
	$(BIN)/geolib book --jobs $(JOBS)

# What needs one core only (types, Sphinx, a browser) runs beside what needs the others.
BESIDE := $(MAKE) --no-print-directory -j2
PYTEST := $(BIN)/python -m pytest
LAYERS := $(PYTEST) --dist worksteal

test: setup ## everything: linters, types, units, doctests, notebooks, browser
	$(BESIDE) lint small
	$(BESIDE) browser layers

test-fast: setup ## linters, types and the quick unit tests
	$(BESIDE) lint units

test-data: setup ## tests that read fetched data sets (folder GEOLIB_DATA), or thousands of cases
	$(LAYERS) -n $(JOBS) -m data -rs tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

units: setup
	$(LAYERS) -n $(JOBS) -m "not slow and not site and not press and not data" tests geolib

layers: compare
	$(LAYERS) -n $(WORKERS) -m "not site and not data" tests geolib

browser: site # shown when it has ended: other tests print at the same time
	$(LAYERS) -n $(JOBS) -m site tests > _build/browser.log 2>&1; code=$$?; cat _build/browser.log; exit $$code

small: setup
	$(BIN)/geolib run --profile small --jobs $(JOBS)
	$(BIN)/geolib claims --profile small --check

site: setup
	$(BIN)/geolib html --profile small

NBVAL := -o addopts= --nbval-lax --nbval-current-env --nbval-cell-timeout 300
# nbval compares what `small` has just executed with the committed pairs, cell by cell.
nbval: small compare ## compare a small run with the committed notebooks

compare: setup
	PYTHONPATH=tests $(PYTEST) -p nbval_recorded $(NBVAL) chapters

nbval-live: setup ## replay every notebook once more, in kernels of nbval's own
	$(PYTEST) -n $(JOBS) --dist loadfile $(NBVAL) chapters

refs: setup ## rewrite the committed notebook pairs
	$(BIN)/geolib refs --jobs $(JOBS)

serve: setup ## serve the rendered site on this machine
	$(BIN)/geolib serve

pdf: book ## the whole book as _build/book.pdf (needs Chromium, some minutes)
	$(BIN)/python book/_ext/print_book.py _build/book/html _build/book.pdf

bench: setup ## time everything against its named peers
	$(BIN)/geolib bench

clean: ## remove everything that was built, and the environment
	rm -rf _build .venv node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache
