# Everything runs in .venv, made by `make install` and again when what it is
# made from changes. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

comma := ,
EXTRAS := beam,seqio,test,dev

.PHONY: install demo check test test-ecosystem test-newest test-oldest lint format \
  goldens clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/python -m infoprune_jax.main --config=configs/demo.py --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Lint, and the fast tests of the modules that differ from BASE: under a minute.
BASE ?= main
CHANGED = $(shell git diff --name-only $(BASE) -- infoprune_jax tests | \
  sed -E 's|^infoprune_jax/(.*/)?([^/]+)$$|tests/\1test_\2|' | \
  grep -E '/test_[^/]+\.py$$' | sort -u | xargs -r ls 2> /dev/null)
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow' \
	  tests/test_layers.py tests/test_writes.py tests/test_words.py \
	  tests/test_docs.py $(CHANGED)

# What needs other environments than .venv.
test-ecosystem: test-newest test-oldest

# Both ends of the version ranges in pyproject.toml: what pip takes today, and
# the lowest versions. Each environment is made once; `make clean` forgets it.
test-newest test-oldest: test-%: .venv-%/.installed
	$(<D)/bin/python -m pytest -n 2 --dist loadscope -m 'not slow'
	rm -rf runs/tiny-$*
	$(<D)/bin/python -m infoprune_jax.main --config=configs/tiny.py \
	  --workdir=runs/tiny-$*

.venv-newest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[$(EXTRAS)]'
	touch $@

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip compile --quiet --resolution lowest-direct \
	  --python $(@D)/bin/python --output-file $(@D)/requirements.txt \
	  $(addprefix --extra=,$(subst $(comma), ,$(EXTRAS))) pyproject.toml
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --editable .
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Only when a change of numbers is meant: see CONTRIBUTING.md.
goldens: install
	$(BIN)/python -m pytest tests/test_golden.py --refresh-goldens

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
