# Two commands matter: `make quickstart` trains a small model on this machine, `make test` runs every test.
# Everything is installed into .venv; constraints.txt has the exact versions.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# One BLAS/OpenMP thread a process: four workers on two cores thrash otherwise.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Hundreds of processes import the package: it is compiled once.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart install dev test lint calibrate unit cluster soak gpu bench docs dashboards recording constraints clean help

help:
	@echo "make quickstart   train a small model on a local four-node cluster"
	@echo "make test         lint, types, import contracts and all tests (15 minutes on two cores)"
	@echo "make unit         unit and contract tests only (under a minute)"
	@echo "make soak         the tests that take too long for every day, and a hundred random faults in one run"
	@echo "make gpu          what one GPU can prove, in eight minutes; on CPUs a rehearsal"
	@echo "make bench        benchmarks against the bare tools, side by side"
	@echo "make docs         regenerate docs that are made from the code"
	@echo "make dashboards   draw the dashboards of a recorded run with Grafana's own panels, and look for mistakes"
	@echo "make recording    record what the documents show, from real runs; best on a quiet machine"
	@echo "make clean        remove .venv, caches and build products (never runs/)"

quickstart: install
	$(BIN)/convoy run jobs/quickstart.yaml

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' \
		|| { echo "error: Convoy needs Python 3.11 to 3.13, found $$($(PYTHON) --version)"; \
		     echo "hint: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) install -q -c constraints.txt -e '.[dev,bench]'
	@touch $@

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

calibrate: dev
	@$(BIN)/python -m tests.calibration

unit: dev
	$(BIN)/python -m pytest -q -n 3 -m "(unit or contract) and not soak" tests/unit tests/contract

# Tests of one file stay together: they share clusters and undisturbed runs.
cluster: dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "(cluster or faults or gpu) and not soak" --durations=25 --durations-min=1 tests/cluster tests/faults tests/gpu tests/monitoring

# Lint runs in one process, beside the unit tests.
test: calibrate
	@$(MAKE) --no-print-directory -j 2 lint unit
	@$(MAKE) --no-print-directory cluster calibrate

# What takes too long for every day.
soak: dev
	$(BIN)/python -c "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
	CONVOY_TEST_REQUIRE=cpu_adam $(BIN)/python -m pytest -q -n 2 --dist loadfile -m soak --durations=25 --durations-min=1
	$(BIN)/python -m tests.faults.soak --times 100

# Needs torch, deepspeed and transformers, but neither Ray nor pytest: GPU=python runs it if only those are installed.
gpu:
	$(or $(GPU),$(BIN)/python) -m tests.gpu

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tests.bench $(BENCH)

docs: dev
	$(BIN)/python -m orchestrator.dashboards.write_files
	$(BIN)/python -m orchestrator.spec.describe.reference
	$(BIN)/convoy schema > jobs/job.schema.json
	$(BIN)/python -m orchestrator.dashboards.monitoring_reference > docs/metrics.md
	$(BIN)/python -m orchestrator.metrics.event_reference
	$(BIN)/python -m orchestrator.run.state_reference
	$(BIN)/python -m orchestrator.monitor.kubernetes_manifests
	$(BIN)/python -m orchestrator.api.openapi_document

# Pictures of the dashboards by Grafana's own panels; DASHBOARDS="record publish" trains again and renews those in docs.
dashboards: dev
	cd tests/rendering/page && { [ -d node_modules ] || npm ci --ignore-scripts --no-audit --no-fund; }
	$(BIN)/python -m tests.rendering $(DASHBOARDS)

recording: dev
	$(BIN)/python -m tests.recording

# After a deliberate upgrade in .venv: freeze what is installed, and review the diff.
constraints: $(VENV)/.installed-bench
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --all --exclude-editable \
		| grep -viE '^(#|pip==|nvidia-[^m]|nvidia_|triton)' | sed 's/+cpu//'; } > constraints.tmp && mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find orchestrator tests -name __pycache__ -type d -prune -exec rm -rf {} +
