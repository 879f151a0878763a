# make help lists the targets.
PYTHON3 ?= python3
# Another environment, for another interpreter: make test VENV=.venv-3.13 PYTHON3=python3.13
# Test processes side by side: most tests wait most of the time. One after the other: ARGS="-n 0".
JOBS ?= $(shell expr 2 '*' $$(nproc))
VENV ?= .venv
PY := $(VENV)/bin/python
MINUTES ?= 10
OPERATIONS ?= 100000
COMPILED := build/compiled
COMPILED_TESTS := tests/raft tests/wal tests/mvcc tests/apply tests/rpc tests/peer tests/lease tests/server tests/fuzz \
  tests/test_compiled.py tests/client/test_kv.py tests/client/test_watch.py tests/client/test_session.py \
  tests/cluster/test_three_members.py::test_nothing_acknowledged_is_lost_when_the_leader_is_killed

.PHONY: help setup up test check compiled test-compiled sim chaos compat fuzz bench bench-report micro proto clean \
  net-demo net-demo-down
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

# In a copy: beside the sources, compiled modules would hide every later edit of them.
compiled: $(COMPILED)/.stamp ## a copy of the tree in build/compiled, with compiled modules (two minutes)
	@tar c --exclude=./build --exclude=./.git --exclude='./.venv*' --exclude='./.*_cache' --exclude=node_modules \
	  --exclude=__pycache__ . | tar x -C $(COMPILED)

# What was built is kept: the C compiler then runs only when the C code is another.
$(COMPILED)/.stamp: setup.py pyproject.toml $(shell find kvstore -name '*.py') | setup
	@mkdir -p $(COMPILED)
	@find $(COMPILED) -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	@tar c --exclude=__pycache__ setup.py pyproject.toml README.md LICENSE build_tools kvstore | tar x -C $(COMPILED)
	@cd $(COMPILED) && KVSTORE_COMPILE=1 $(abspath $(PY)) setup.py -q build_ext --inplace
	@touch $@

test-compiled: compiled ## a good part of the suite on the compiled modules
	@cd $(COMPILED) && KVSTORE_TEST_FORM=compiled PYTHONPATH=$(abspath $(COMPILED)) \
	  $(abspath $(PY)) -m pytest -q -m "not slow" -n $(JOBS) --dist worksteal $(or $(ARGS),$(COMPILED_TESTS))

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

net-demo: setup ## an overlay across three simulated hosts, broken and healed (root); KEEP=1 leaves it up
	@$(PY) -m tests.net.demo $(if $(filter-out 0 no,$(KEEP)),--keep)

net-demo-down: setup ## end what net-demo KEEP=1 left up
	@$(PY) -m tests.net.demo --down

proto: setup ## regenerate kvstore/pb
	@proto/generate

clean: ## remove caches and build output
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
