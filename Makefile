# Everything starts here: `make help`.
VENV ?= .venv
PY ?= 3.11
ifeq ($(origin PYTHON),undefined)
PYTHON := python$(PY)
endif

# Make would expand a $, and it divides names at spaces. Other characters of ROOT reach no shell: see `dataset`.
NO_DOLLAR := ROOT PROFILE TABLE IMAGES MAP TEST TEST_FROM VENV PYTHON PY PORT JOBS
ifneq ($(findstring $$,$(foreach name,$(NO_DOLLAR),$(value $(name)))),)
$(error $(NO_DOLLAR) may hold no dollar sign: choose another path, or make a link to it)
endif
ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): expected a path without spaces: choose another path, or make a link to it)
endif
ifneq ($(strip $(foreach character,; & | < > ( ) " ' ` * ? \ #,$(findstring $(character),$(VENV)))),)
$(error VENV=$(VENV): expected a path without quotes and characters of the shell)
endif

export PATH := $(abspath $(VENV))/bin:$(PATH)
export ROOT PROFILE TABLE IMAGES MAP TEST TEST_FROM PORT JOBS INSTALLER UPGRADE
export PYTHONPATH := $(CURDIR)/src
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# The marker's name has the Python's version and the checksum of lock and pyproject.toml: where one changed, or the
# environment's Python is gone, it is filled again.
READY := $(VENV)/.ready-$(PY)-$(firstword $(shell cat requirements.lock pyproject.toml | cksum))
ifeq ($(wildcard $(VENV)/bin/python),)
.PHONY: $(READY)
endif

.DEFAULT_GOAL := help
.PHONY: help env lock checkout repro app trials leaks bench dataset weights test test-fast test-python faults lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  VENV=path uses the environment at path instead of .venv"

env: $(READY) ## create the environment (6 GB; once); INSTALLER=pip does without uv

# An order-only dependency: the marker's name has the checksums, so dates need not be compared.
$(READY): | requirements.lock
	@echo "==> creating the environment in $(VENV) from requirements.lock"
	@command -v "$(PYTHON)" > /dev/null || { echo "error: $(PYTHON) not found; set PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(PY)")' || { \
		echo "error: Python $(PY) is needed, $(PYTHON) is $$("$(PYTHON)" --version); set PYTHON=..." >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	@rm -f "$(VENV)"/.ready-*
	@"$(VENV)/bin/python" tools/environment.py
	@touch "$@"

lock: env ## write requirements.lock anew with hashes (UPGRADE=1 takes the newest versions)
	@python -m tools.lock

# DVC and the manifests need the history: found before gigabytes are installed.
checkout:
	@message=$$(git rev-parse --git-dir 2>&1) || { \
		case "$$message" in \
		*"dubious ownership"*) echo "error: git refuses a folder of another owner: $$message" ;; \
		*) echo "error: no git repository: git clone brings the history (an archive has none); or git init," \
			"git add . and git commit" ;; \
		esac >&2; exit 1; }

# A variable ROOT or TABLE of the shell does not choose the data of a run: one of make's own command line does.
GIVEN := $(if $(findstring command line,$(origin ROOT) $(origin TABLE)),dataset)

repro: checkout env $(GIVEN) ## run the whole graph: data to scores, result page and submission [JOBS=2; TABLE=... or ROOT=...: make dataset first]
	@echo "==> dvc repro (profile and data set: params.yaml)"
	@python -m popularity.check
	$(if $(JOBS),python -m popularity.repro --jobs="$$JOBS",dvc repro report)
	@python -m popularity.resources reports/resources
	@echo && cat reports/scores.txt
	@python -m popularity.submission

app: env ## what if? a page on this machine over the models of the last run [PORT=8090]
	@python -c 'import aiohttp' 2> /dev/null || { echo "==> installing the extra app, as requirements.lock has it"; \
		python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock aiohttp; }
	@python -m popularity.app $(if $(PORT),--port="$$PORT")

trials: ## compare experiments: scores on forward and group, changed parameters
	@names=$$(dvc exp list --name-only) || exit 1; test -n "$$names" || { \
		echo "No finished trial of this commit yet; to make one: dvc exp run --name NAME -S KEY=VALUE (docs/experiments.md)"; \
		exit 0; }; \
	dvc exp show --no-pager --md --only-changed --sort-by forward.stack.mae --drop 'Created|State|Executor|step$$' \
		--drop '(holdout|random|validation|test)\.' --drop 'train\.(loss|attention|global_prompt|local_prompt)$$' \
		--drop '\w+\.(metadata|user_mean|constant)\.' --drop '\w+\.stack\.(bias|mape)$$' --drop '.*/|submissions$$'

leaks: env ## validation gain and test loss of seven leaks
	@python -m benchmarks.leaks

bench: env ## time and memory at three sizes, with the ratio to a baseline (up to 40 minutes)
	@python -m benchmarks.speed all --csv reports/bench.csv

dataset: env ## check and use a data set: make dataset ROOT=path, or TABLE=posts.csv IMAGES=folder [PROFILE=name]
	@test -n "$$ROOT$$TABLE" || { echo "error: no ROOT and no TABLE; expected: make dataset ROOT=path/to/data," \
		"or make dataset TABLE=posts.csv IMAGES=folder" >&2; exit 1; }
ifeq ($(TABLE),)
	@echo "==> python -m popularity.dataset ROOT"
	@python -m popularity.dataset $(if $(filter 1,$(FOLLOW_LINKS)),--follow-links) -- "$$ROOT"
else
	@echo "==> python -m popularity.dataset --table TABLE"
	@python -m popularity.dataset --table="$$TABLE" $(if $(IMAGES),--images="$$IMAGES") $(if $(MAP),--map="$$MAP") \
		$(if $(TEST),--test="$$TEST") $(if $(TEST_FROM),--test-from="$$TEST_FROM") \
		$(if $(filter 1,$(FOLLOW_LINKS)),--follow-links)
endif
	@set -f; python -m popularity.dataset_profile -- $$PROFILE
	$(if $(filter repro,$(MAKECMDGOALS)),,@echo "next: make repro")

weights: env ## get the encoders of params.yaml ready: download or join, pin, check (once)
	HF_HUB_OFFLINE=0 python -m popularity.encoders.weights

# One thread for each process: two processes already use both cores.
test: env ## run all tests, two files at a time
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 --durations-min=10

test-fast: env ## run the fast tests (90 seconds on two cores)
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "not slow"

# The project names only Pythons on which this passed: requires-python, docs/contributing.md.
test-python: ## try another Python: environment, fast tests, tiny graph: make test-python PY=3.12
	@$(MAKE) test-fast VENV=.venv-$(PY) PY=$(PY)
	@PATH="$(CURDIR)/.venv-$(PY)/bin:$$PATH" OMP_NUM_THREADS=1 python -m pytest tests/pipeline/test_graph.py
	@echo "Python $(PY) passed: write it, with the date, into docs/contributing.md and requires-python"

faults: env ## kill each stage 20 times, fill its disk, run the graph twice; prints counts
	FAULT_KILLS=20 python -m pytest tests/faults tests/core/test_atomic.py tests/dataset/test_mutations.py

lint: env ## run ruff and mypy
	ruff check .
	ruff format --check .
	mypy

clean: ## remove temporary files of runs and tools (keeps environment and DVC cache)
	rm -rf .state .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	find data models reports submissions -name '.*.partial' -prune -exec rm -rf {} + 2> /dev/null || true
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
