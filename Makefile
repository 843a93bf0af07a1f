# Needs Python 3.11+, make and a package index. Everything else is set up here.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check test-slow test-fuzz test-board test-faults test-power test-memory docs locks kernel results matrix push-speed fleet-sim plan-reports clean

demo: $(VENV)/.ready
	$(BIN)/edgephi demo

test: check
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m "not slow and not faults and not power and not board"

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

# A few minutes: every reader of others' data, with three hundred inputs for each of its kinds.
test-fuzz: $(VENV)/.ready
	EDGEPHI_FUZZ=long $(BIN)/python -m pytest -n logical --maxprocesses 4 -m fuzz

# Root, and Debian's mmdebstrap and qemu-user-static; four minutes of processor time when nothing is cached.
test-board: $(VENV)/.ready
	$(BIN)/python -m pytest -m board

# All that docs/reliability.md has tables of. Root, docker-registry and what test-power needs; an hour.
test-faults: $(VENV)/.ready
	EDGEPHI_RECORD_FAULTS=docs/reliability.md $(BIN)/python -m pytest -m "faults or power"

# The part of it that befalls a whole computer; a quarter of an hour. Root, qemu-system-arm, mmdebstrap and e2fsprogs;
# packages of Debian the first time.
test-power: $(VENV)/.ready
	EDGEPHI_RECORD_FAULTS=docs/reliability.md $(BIN)/python -m pytest -m power

# Root, 24 GiB of memory, 60 GB of disk, twenty minutes to an hour.
test-memory: $(VENV)/.ready
	$(BIN)/python benchmarks/build_memory.py > benchmarks/BUILD_MEMORY.md.new
	mv benchmarks/BUILD_MEMORY.md.new benchmarks/BUILD_MEMORY.md

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.ready
	$(BIN)/python -m maintenance.docs

# Two minutes; pip's index says the hashes.
locks: $(VENV)/.ready
	$(BIN)/python -m maintenance.lock_wheels

# The model by which a device's speed of multiplying is measured.
kernel: $(VENV)/.ready
	$(BIN)/python -m maintenance.matmul_int4

results: $(VENV)/.ready
	$(BIN)/python benchmarks/results.py > benchmarks/RESULTS.md.new
	mv benchmarks/RESULTS.md.new benchmarks/RESULTS.md

# On a quiet machine: it measures what one device costs.
fleet-sim: $(VENV)/.ready
	$(BIN)/python benchmarks/fleet_sim.py > benchmarks/FLEET.md.new
	mv benchmarks/FLEET.md.new benchmarks/FLEET.md

# Two minutes, 1 GB of disk.
plan-reports: $(VENV)/.ready
	$(BIN)/python benchmarks/plan_reports.py > benchmarks/PLAN.md.new
	mv benchmarks/PLAN.md.new benchmarks/PLAN.md

# Root and iproute2 for the lossy link; 6 GB of disk.
# One part of it, more often: make push-speed PART=loopback ROUNDS=5
push-speed: $(VENV)/.ready
	$(BIN)/python benchmarks/push.py $(addprefix --part ,$(PART)) $(addprefix --rounds ,$(ROUNDS))

# Goes on where it stopped: what is recorded for the same workflows and versions isn't built again.
matrix: $(VENV)/.ready
	EDGEPHI_RECORD_CAPABILITIES=$(CURDIR)/toolkit/data/capabilities.json $(BIN)/python -m pytest tests/system/test_family.py

clean:
	rm -rf $(VENV) .board dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edgephi needs Python 3.11 or newer, $(PYTHON) is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[optimize,dev]'
	touch $@
