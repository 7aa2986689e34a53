# `make demo` serves the demo model, `make test` runs the suite; both set up what is missing. `make help` lists the rest.

PYTHON ?= python3
PORT ?= 8000
# PyPI's torch is a CUDA build of several GB: where pip's own sources don't hold torch $(TORCH), name PyTorch's wheel
# index for CPUs here.
TORCH_INDEX_URL ?=

BIN := .venv/bin
DEMO := models/demo
STAMP := .venv/.demur-setup
LINKS := build/namespace/.linked
# One OpenMP pool for the engine is enough; numpy's threads only get in its way.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-drift bundle test test-engines test-others lint format bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) $(LINKS) $(DEMO)/config.json ## install into .venv from the lock file and export the demo model, where missing

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c "import runpy, sys, sysconfig; sys.exit(runpy.run_path(sysconfig.get_path('platlib') + '/torch/version.py')['cuda'] and 'a CUDA build of torch was installed: remove .venv, set TORCH_INDEX_URL to the CPU wheel index of PyTorch (see README), and run make again')"
	@$(BIN)/python -c "import ctypes; ctypes.CDLL('libnuma.so.1')" 2>/dev/null || { echo "vLLM's CPU build needs the system library libnuma.so.1 (Debian, Ubuntu: apt-get install libnuma1)" >&2; exit 1; }
	@touch $@

# For mypy, which does not see through an editable install.
$(LINKS): pyproject.toml
	@mkdir -p build/namespace/demur && cd build/namespace/demur && for part in decision calibration server training clients; do ln -sfn ../../../$$part $$part; done
	@touch $@

$(DEMO)/config.json: $(wildcard examples/adapter/*) | $(STAMP)
	$(BIN)/demur export-demo-model $(DEMO) --force

demo: setup ## serve the demo model with the example tasks (PORT=8000)
	$(BIN)/demur serve --demo --port $(PORT)

demo-drift: setup ## break a certificate with shifted traffic, see it withdrawn and renewed: out/drift.png (under ten minutes)
	$(BIN)/python examples/drift.py --out out

bundle: setup ## make the bundle that the demo serves anew
	$(BIN)/demur calibrate --task examples/tasks/voice_intent.yaml --data examples/data/voice_intent.jsonl \
	  --searched examples/data/voice_intent_searched.jsonl --family 150 --attempt 3 --alpha 0.02 --valid-days 3650 \
	  --model $(DEMO) --model-name SmolLM2-135M-demo --out examples/bundles/voice_intent --reads out/voice_intent.jsonl --replace

test: setup ## run the whole suite: the tests with engines, and the others beside them
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-engines test-others

test-engines:
	$(BIN)/python -m pytest -m engine

test-others:
	$(BIN)/python -m pytest -m "not engine"

lint: setup ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## run every benchmark (two and a half hours; name one with .venv/bin/python -m benchmarks.NAME)
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.certificates
	$(BIN)/python -m benchmarks.monitor
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.wordings
	$(BIN)/python -m benchmarks.rereading
	test ! -d ../shared/data || $(BIN)/python -m benchmarks.real_sets
	$(BIN)/python -m benchmarks.synthetic --quick

lock: ## resolve requirements.lock anew (wants uv)
	uv pip compile pyproject.toml --extra cpu --extra postgres --extra train --group dev --universal --python-version 3.11 \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --index-strategy unsafe-best-match $(LOCK_OPTIONS) \
	  | sed -E "s/ ?(and )?platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'//; s/ ; *$$//" \
	  > requirements.lock.new && mv requirements.lock.new requirements.lock

clean: ## remove what was built (not .venv, not the demo model)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
