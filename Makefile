# Every target sets up .venv by itself when it is missing or older than the lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export DO_NOT_TRACK := 1
# Read by torch's thread pool: threads that spin while they wait slow a busy machine down tenfold.
export OMP_WAIT_POLICY := PASSIVE
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo ablate test test-slow bench bench-gpu lint format install clean
.DEFAULT_GOAL := test

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "occflow needs Python 3.11 or newer, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,nuscenes]'
	$(BIN)/python -m pipelines.synth # compiles the renderer once, half a minute, for the demo and the tests
	$(BIN)/python -m model # the same for the kernels of training, a quarter of a minute
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/occflow demo

# Goes on where it stopped; options as in docs/ablations.md: make ablate ARGS='--seeds 5 --budget-minutes 60'
ablate: $(STAMP)
	$(BIN)/python occflow_ablate.py $(ARGS)

# Files of tests side by side, one process a core and one thread each; TESTERS=0 runs them one after the other.
TESTERS ?= 2
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(TESTERS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

bench: $(STAMP)
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What only a GPU can say; goes on where it stopped: make bench-gpu ARGS='--minutes 14'
bench-gpu: $(STAMP)
	$(BIN)/python tests/benchmarks/on_a_gpu.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
