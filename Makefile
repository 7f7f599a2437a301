# Everything from a fresh clone: `make demo` tells the story, `make test` proves it. Nothing else has to be installed
# than Python 3.11 or newer with its venv module.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check controlplane unit test-all e2e bench schemas requirements clean

demo: $(STAMP)
	$(RUN)/python examples/flights/demo.py

test: check controlplane unit

# Fast first: format, lint, types, architecture, then the tests.
check: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/mlspec schema --check

# The real API server and controllers that tests run against, built from source once (about 20 minutes, then cached).
# Tests build what is missing anyway; here the progress is seen. Without Go they are skipped, loudly.
controlplane: $(STAMP)
	PYTHONPATH=tests $(RUN)/python -m cluster.bed build controlplane controllers

unit: $(STAMP)
	$(RUN)/python -m pytest

# The long form: 50,000 histories against the rules, every verb by every fault. Hours, not minutes.
test-all: check controlplane
	MLSPEC_LONG=1 $(RUN)/python -m pytest

# Real pods on a real node, made and removed by the tests: root on Linux, Debian's packages; elsewhere skipped with the reason.
e2e: $(STAMP)
	$(RUN)/python -m pytest -m node

bench: $(STAMP)
	$(RUN)/python -m benchmarks

schemas: $(STAMP)
	$(RUN)/mlspec schema --write

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "Installing into $(VENV): about a minute, once ..."
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# After a change of the dependencies in pyproject.toml.
requirements: $(STAMP)
	$(RUN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url \
		--no-header pyproject.toml --output-file requirements/dev.txt
	$(RUN)/uv pip compile --quiet --universal --python-version 3.11 --constraint requirements/dev.txt --generate-hashes \
		--no-emit-index-url --no-header requirements/runtime.in --output-file requirements/runtime.txt

clean:
	rm -rf $(VENV)
