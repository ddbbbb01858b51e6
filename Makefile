# Everything runs in .venv, made by `make install` and again when what it is
# made from changes. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

.PHONY: install demo test lint format goldens clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[beam,seqio,test,dev]'
	touch $@

demo: install
	$(BIN)/python -m infoprune_jax.main --config=configs/demo.py --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Only when a change of numbers is meant: see CONTRIBUTING.md.
goldens: install
	$(BIN)/python -m pytest tests/test_golden.py --refresh-goldens

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
