# Everything starts here: `make help`.
VENV ?= .venv
PYTHON ?= python3.11

export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/src
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# The environment is named after the lock it was made from: a changed lock makes it anew.
READY := $(VENV)/.ready-$(firstword $(shell cksum requirements.lock))

.DEFAULT_GOAL := help
.PHONY: help env repro trials leaks bench dataset weights test test-fast faults lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  VENV=path uses the environment at path instead of .venv"

env: $(READY) ## create the environment (6 GB; once)

# Order only: the name holds the lock's checksum, and a fresh clone's lock is always newer than the marker.
$(READY): | requirements.lock
	@echo "==> creating the environment in $(VENV) from requirements.lock"
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

repro: env ## run the whole graph: data -> validated submission and score table
	@echo "==> dvc repro (profile and data set: params.yaml)"
	@python -m popularity.check
	dvc repro
	@python -m popularity.resources reports/resources
	@echo && cat reports/scores.txt
	@python -m popularity.submission

trials: ## compare experiments: scores that judge a trial, changed parameters
	@names=$$(dvc exp list --name-only) || exit 1; test -n "$$names" || { \
		echo "No finished trial of this commit yet; to make one: dvc exp run --name NAME -S KEY=VALUE (README, Experiments)"; \
		exit 0; }; \
	dvc exp show --no-pager --md --only-changed --sort-by forward.stack.mae --drop 'Created|State|Executor|step$$' \
		--drop '(holdout|random|validation)\.' --drop 'train\.(loss|attention|global_prompt|local_prompt)$$' \
		--drop '\w+\.(metadata|user_mean|constant)\.' --drop '\w+\.stack\.(bias|mape)$$' --drop '.*/|submissions$$'

leaks: env ## what each of seven leaks seems to gain, and what it loses on later posts
	@python -m benchmarks.leaks

bench: env ## time and memory at three sizes, with the ratio to the plain way (up to 40 minutes)
	@python -m benchmarks.speed all --csv reports/bench.csv

dataset: env ## choose a data set in the official layout: make dataset ROOT=path
	@test -n "$(ROOT)" || { echo "error: say which: make dataset ROOT=path/to/data" >&2; exit 1; }
	python -m popularity.dataset "$(ROOT)"

weights: env ## fetch the hub encoders named in params.yaml, once
	HF_HUB_OFFLINE=0 python -m popularity.encoders.weights

# A thread each: what runs beside would only take turns with a second one.
test: env ## run all tests, two files at a time
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: env ## run the tests that are not slow, within 90 seconds on two cores
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "not slow"

faults: env ## kill each stage 20 times, fill its disk, run the graph twice; prints counts
	FAULT_KILLS=20 python -m pytest tests/faults tests/core/test_atomic.py tests/dataset/test_mutations.py

lint: env ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

clean: ## remove what runs and tools leave behind (not the environment, not the DVC cache)
	rm -rf .state .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	find data models reports submissions -name '.*.partial' -prune -exec rm -rf {} + 2> /dev/null || true
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
