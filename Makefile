# make help lists the targets.
PYTHON3 ?= python3
# Another environment, for another interpreter: make test VENV=.venv-3.13 PYTHON3=python3.13
# Test processes side by side: most tests wait most of the time. One after the other: ARGS="-n 0".
JOBS ?= $(shell expr 2 '*' $$(nproc))
VENV ?= .venv
PY := $(VENV)/bin/python
MINUTES ?= 10
OPERATIONS ?= 100000

.PHONY: help setup up test check sim chaos compat fuzz bench bench-report micro proto clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.stamp ## create .venv with the pinned dependencies (quick when done)

$(VENV)/.stamp: requirements.lock pyproject.toml
	@test -x $(PY) || $(PYTHON3) -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: setup ## run a three-node cluster in the foreground
	@$(PY) -m kvstore.cli.kvstore up $(ARGS)

test: setup ## the quick test suite
	@$(PY) -m pytest -q -m "not slow" -n $(JOBS) --dist worksteal $(ARGS)

test-slow: setup ## the longer suites
	@$(PY) -m pytest -q -m "slow" -n $(JOBS) --dist worksteal $(ARGS)

check: setup ## lint, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

sim: setup ## simulate core and whole members for MINUTES; SEED=n replays one (ARGS=--full)
	@$(PY) -m tests.sim $(if $(SEED),--seed $(SEED),--minutes $(MINUTES)) $(ARGS)

chaos: setup ## real members under real faults for MINUTES (namespaces when root); SEED=n, ARGS="--cell kill-leader"
	@$(PY) -m tests.cluster.faults --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# In memory where that is possible: what is compared are answers, not disks.
compat: setup ## compare OPERATIONS random requests with etcd (100,000 take 10 to 15 minutes); SEED=n replays
	@TMPDIR=$(if $(wildcard /dev/shm),/dev/shm,/tmp) $(PY) -m tests.compat.random --operations $(OPERATIONS) $(if $(SEED),--seed $(SEED)) $(ARGS)

# The search is guided by coverage where atheris installs (wheels for Linux on x86-64), else random.
fuzz: setup ## fuzz everything that takes bytes from outside for MINUTES; ARGS="--target wal"
	@$(PY) -m pip install -q --disable-pip-version-check --only-binary :all: "atheris>=3.0" || echo "no atheris: mutating at random"
	@$(PY) -m tests.fuzz --seconds $$(( $(MINUTES) * 60 )) $(ARGS)

bench: setup ## all targets beside etcd and others, with a page in bench/results (ARGS="--quick", "--growth"; docs/bench.md)
	@$(PY) -m bench $(ARGS)

bench-report: setup ## a short benchmark report (about two minutes), with a page in build/bench
	@$(PY) -m bench --ci --results build/bench

micro: setup ## microbenchmarks of the hot parts, in microseconds per operation
	@$(PY) -m pytest -q -s bench/micro $(ARGS)

proto: setup ## regenerate kvstore/pb
	@proto/generate

clean: ## remove caches and build output
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
