# `make book` and `make test` need only python3, make and npm: they set up the rest.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
# Tests that start processes and wait leave a core idle: one worker more than cores.
WORKERS ?= 3
# Data sets lie where GEOLIB_DATA says; a folder `shared/data` beside the checkout is found.
ifneq ($(wildcard ../shared/data),)
export GEOLIB_DATA ?= $(abspath ../shared/data)
endif
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help setup book test test-fast lint units small site nbval refs serve bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready node_modules/ready

# torch first and exactly: a resolver left alone would fetch another build of it.
.venv/ready: pyproject.toml constraints.txt peers.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[book,test,sweep,bench]'
	$(BIN)/python -m pip install --quiet --no-deps -r peers.txt
	touch $@

node_modules/ready: package.json package-lock.json
	npm ci --no-audit --no-fund --silent
	touch $@

book: setup ## execute every chapter and render the site
	$(BIN)/geolib run --profile book --jobs $(JOBS)
	$(BIN)/geolib html --profile book

# What needs one core only (types, Sphinx) runs beside what needs the others.
BESIDE := $(MAKE) --no-print-directory -j2

test: setup ## everything: linters, types, units, doctests, notebooks, browser
	$(BESIDE) lint small
	$(BESIDE) site nbval
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests geolib

test-fast: setup ## linters, types and the quick unit tests
	$(BESIDE) lint units

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

units: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
	  -m "not slow and not site and not press" tests geolib

small: setup
	$(BIN)/geolib run --profile small --jobs $(JOBS)
	$(BIN)/geolib claims --profile small --check

site: setup
	$(BIN)/geolib html --profile small

nbval: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -o addopts= --nbval-lax \
	  --nbval-current-env --nbval-cell-timeout 300 chapters

refs: setup ## rewrite the committed notebook pairs
	$(BIN)/geolib refs --jobs $(JOBS)

serve: setup ## serve the rendered site on this machine
	$(BIN)/geolib serve

bench: setup ## time everything against its named peers
	$(BIN)/python -m benchmarks.run

clean: ## remove everything that was built, and the environment
	rm -rf _build .venv node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache
