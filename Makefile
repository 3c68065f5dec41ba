# Every target sets itself up: it needs make, and Python 3.11 or newer. Nothing is installed outside .venv.

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	command -v $$python; break; fi; done)

BIN := .venv/bin
READY := .venv/.ready
SOURCES := src tests $(wildcard bench) $(wildcard examples)
TYPING := $(wildcard tests/typing/*.py)
PYTEST := $(BIN)/python -m pytest -q
# Tests wait more than they compute. Those of one file stay together, as they share clusters.
WORKERS ?= 4

.PHONY: help test check demo demo-cluster bench bench-peers bench-growth night soak format clean

help:
	@echo "make test          all tests but the soak"
	@echo "make check         format, lint, types, floors, docs"
	@echo "make demo          the digits example in one process"
	@echo "make demo-cluster  the same example on a cluster of this machine"
	@echo "make bench         the benchmarks"
	@echo "make bench-peers   the same work on Ray, xoscar and Dask"
	@echo "make bench-growth  cost from a thousand to a million agents, 1 to 8 nodes, 16 to 1,024 shards"
	@echo "make night         a thousand new seeds, chaos, and every kill and partition of the soak (some hours)"
	@echo "make soak          the long form of the fault tests (a day)"
	@echo "make format        format the code and fix what lint can fix"
	@echo "make clean         remove .venv and all that was built"

# The dev group is read here, so that any pip of Python 3.11 will do (`pip install --group` came with 25.1).
# A .venv whose Python is gone is made anew.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Holdfast needs Python 3.11 or newer, with venv (Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -c 'import pip' >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > .venv/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]' -r .venv/dev.txt
	@touch $@

test: $(READY)
	$(PYTEST) --numprocesses $(WORKERS) --dist loadfile

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(if $(TYPING),$(BIN)/mypy --strict $(TYPING))
	$(if $(TYPING),$(BIN)/pyright --pythonpath $(BIN)/python $(TYPING))
	$(BIN)/lint-imports
	$(PYTEST) tests/test_floors.py tests/test_surface.py tests/docs

demo: $(READY)
	$(BIN)/python examples/digits/main.py --engine local

demo-cluster: $(READY)
	$(BIN)/python examples/digits/main.py --engine cluster

bench: $(READY)
	$(BIN)/python -m bench

bench-peers: $(READY)
	$(BIN)/python -m bench.peers

bench-growth: $(READY)
	$(BIN)/python -m bench.growth
	$(BIN)/python -m bench.many_hosts

# All parts run, also where one of them fails.
night: $(READY)
	$(MAKE) --keep-going night-seeds night-chaos night-soak

.PHONY: night-seeds night-chaos night-soak
night-seeds:
	$(PYTEST) -m night
night-chaos:
	$(BIN)/holdfast chaos --seconds 900
night-soak:
	$(PYTEST) -m "soak and not night" --deselect tests/testing/test_simulation.py

soak: $(READY)
	$(PYTEST) -m soak

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .holdfast dist build
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
