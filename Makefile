# `make` lists the targets. PYTHON=/path/to/python and DEVICE=cpu|cuda overrule what the set-up finds.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test-fast test test-all fuzz lint clean

PY := .venv/bin/python
# One thread: on tensors as small as the tests' two are several times slower. Nothing in the tests needs a network.
TEST_ENV := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
# Two files of tests at a time: the start of an engine keeps one core busy for half a minute. WORKERS= runs one by one.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make .venv and install everything (nothing to do when it is complete)
	@PYTHON='$(PYTHON)' DEVICE='$(DEVICE)' sh scripts/setup.sh

quickstart: setup ## train, evaluate and export on the CPU; SEED=1 changes the seed
	@$(PY) scripts/quickstart.py $(if $(SEED),--seed $(SEED))

test-fast: setup ## the quick tests, about a minute; ARGS="-k loss" is passed to pytest
	@$(TEST_ENV) $(PY) -m pytest $(WORKERS) -m "not slow and not long" $(ARGS)

test: setup ## what a change is tested with, some minutes: all but real engines, two processes and kills
	@$(TEST_ENV) $(PY) -m pytest $(WORKERS) --durations=10 -m "not long" $(ARGS)

test-all: setup ## every test, about half an hour
	@$(TEST_ENV) $(PY) -m pytest $(WORKERS) --durations=10 $(ARGS)

fuzz: setup ## made-up and damaged input, CASES=500 of each kind, with new seeds
	@$(TEST_ENV) TRAPO_LITE_FUZZ=$(or $(CASES),500) $(PY) -m pytest $(WORKERS) --durations=10 tests/*/test_fuzz_*.py $(ARGS)

lint: setup ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

.DEFAULT:
	@echo "make: there is no target '$@'; the targets are" >&2; $(MAKE) -s help >&2; exit 2

clean: ## remove caches and build products; .venv and runs stay
	rm -rf build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
