# Each target but gpu makes .venv itself when it is missing or out of date. Needs: make, Python 3.10+ with venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-parity

.PHONY: help demo test slow lint parity bench bench-env gpu clean

help:                 ## what there is
	@sed -n 's/^\([a-z-]*\):.*##/make \1\t/p' Makefile | expand -t 16

demo: $(READY)        ## a first run, on preferences that it makes itself
	$(BIN)/prefopt demo

test: $(READY)        ## the tests
	$(BIN)/pytest -m "not parity and not slow"

slow: $(READY)        ## the tests that take minutes: DPO against the exact optimum on 100,000 pairs
	$(BIN)/pytest -m slow tests

lint: $(READY)        ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(READY)      ## the losses against TRL's, where TRL can be installed
	@if $(BIN)/pip install -q -c constraints.txt -e ".[dev,parity]"; then $(BIN)/pytest -m parity tests; \
	else echo "parity: skipped, because TRL cannot be installed here (the reason stands above)"; fi

bench: bench-env      ## the measurements, beside TRL, in runs/bench
	$(PEERS)/bin/python -m benchmarks --out runs/bench
	$(PEERS)/bin/python -m benchmarks.growth --out runs/bench

bench-env: $(PEERS)/.ready  ## an environment of its own that has TRL too

GPU := -m benchmarks --device cuda --workloads hh --rounds 1
gpu:                  ## what needs a CUDA device (7B: 140 GB), with PYTHON's own torch: tests and measurements
	-$(PYTHON) -m pytest -m cuda tests
	$(PYTHON) -m benchmarks.head --device cuda
	$(PYTHON) $(GPU) --size 0.5B --batch-sizes 16 --steps 30 --untimed 15 --out runs/gpu-0.5b --schemes prefopt trl trl-best-16
	$(PYTHON) $(GPU) --size 7B --batch-sizes 16 --steps 6 --untimed 2 --out runs/gpu-7b --schemes prefopt trl trl-best
	$(PYTHON) $(GPU) --size 7B --batch-sizes 64 --steps 10 --untimed 5 --out runs/gpu-7b --add --schemes prefopt

clean:                ## removes what these targets made, except runs/
	rm -rf .venv $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find prefopt tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prefopt needs Python 3.10 or newer: make PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

$(PEERS)/.ready: pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[parity]"
	@touch $@
