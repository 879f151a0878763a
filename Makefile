# make help lists the targets.
PYTHON3 ?= python3
PY := .venv/bin/python
MINUTES ?= 10

.PHONY: help setup up test check sim bench proto clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.stamp ## create .venv with the pinned dependencies (quick when done)

.venv/.stamp: requirements.lock pyproject.toml
	@test -x $(PY) || $(PYTHON3) -m venv .venv
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: setup ## run a three-node cluster in the foreground
	@$(PY) -m kvstore.cli.kvstore up $(ARGS)

test: setup ## the quick test suite
	@$(PY) -m pytest -q -m "not slow" $(ARGS)

test-slow: setup ## the longer suites
	@$(PY) -m pytest -q -m "slow" $(ARGS)

check: setup ## lint, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

sim: setup ## simulate core and whole members for MINUTES; SEED=n replays one (ARGS=--full)
	@$(PY) -m tests.sim $(if $(SEED),--seed $(SEED),--minutes $(MINUTES)) $(ARGS)

bench: setup ## benchmark beside etcd, results in bench/results
	@$(PY) -m bench $(ARGS)

bench-report: setup ## a short benchmark report (about a minute)
	@$(PY) -m bench --ci

proto: setup ## regenerate kvstore/pb
	@proto/generate

clean: ## remove caches and build output
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
