# saelake's commands. Every target makes .venv by itself; RECIPE and LAKE choose another study or lake.
RECIPE ?= recipes/organism.toml
LAKE ?= lake
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help venv ingest analyze status test lint docs organism clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: $(INSTALLED)  ## the virtual environment, with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

ingest: $(INSTALLED)  ## sparse activations of RECIPE's prompts into LAKE
	$(BIN)/saelake ingest $(RECIPE) --lake $(LAKE)

analyze: $(INSTALLED)  ## ingest if needed, then search for causes and print the table
	$(BIN)/saelake analyze $(RECIPE) --lake $(LAKE)

status: $(INSTALLED)  ## what is done, what would be computed, and why
	$(BIN)/saelake status $(RECIPE) --lake $(LAKE)

lint: $(INSTALLED)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## everything that CI runs
	$(BIN)/python -m pytest

docs: analyze  ## run the commands in README.md and docs/ and write their output there
	$(BIN)/python -m tests.documents $(LAKE)

organism: $(INSTALLED)  ## train the embedded model and its SAEs again (minutes)
	$(BIN)/python -m ingest.organism.build

clean:  ## remove what tools leave behind, but neither .venv nor a lake
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache dist
