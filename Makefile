# One command each. Use a virtual environment: python3 -m venv .venv && . .venv/bin/activate
.PHONY: help install check format test slow bench extraction clean

help:            ## show this list
	@grep -E '^[a-z]+: +##' $(MAKEFILE_LIST) | sed -E 's/: +## /\t/'

install:         ## the package, editable, with everything a contributor needs
	pip install -e ".[dev]"

check:           ## style, format and types
	ruff check . && ruff format --check . && mypy

format:          ## put the code into shape
	ruff check --fix . && ruff format .

test:            ## the default tests (offline, CPU)
	pytest

slow:            ## the long fault-injection and statistics runs
	pytest -m slow

bench:           ## all benchmarks; results go to benchmarks/results and benchmarks/README.md
	for file in benchmarks/bench_*.py; do python $$file || exit 1; done && python benchmarks/render.py

extraction:      ## parts of the extraction benchmark: make extraction ARGS="--only limit", or ARGS=--list
	python benchmarks/bench_extraction.py $(ARGS) && python benchmarks/render.py

clean:           ## remove what builds and tests left behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
