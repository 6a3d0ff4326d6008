# Needs Python 3.11 or newer and make; everything else is installed into .venv.
#   make demo                the main job on simulated episodes (CPU)
#   make demo EXTRA=cuda12   the same on a machine with NVIDIA GPUs (or EXTRA=cuda13)
#   make test                the tests; `make test-slow` runs the slow ones too
#   make mutants             makes wrong changes of one line, and tells which of them no test notices
PYTHON ?= python3
EXTRA ?=
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := export,dev$(if $(EXTRA),$(comma)$(EXTRA))
comma := ,
# .venv stays as long as its Python is new enough, and the one that was named (make PYTHON=python3.12).
NAMED := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))
IS_NEW := import sys; sys.exit(sys.version_info < (3, 11))
IS_THE_NAMED_ONE = { test -z "$(NAMED)" || test "`$(NAMED) -V`" = "`$(BIN)/python -V`"; }
REFUSE_OLD := import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
  'error: $(PYTHON) is Python %d.%d, and 3.11 or newer is needed: make PYTHON=python3.11, for instance' % v)
STAMP := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))
# Pinned versions for the CPU; a CUDA build of JAX chooses its own.
CONSTRAINTS := $(if $(EXTRA),,-c constraints.txt)

# A file's tests share what they compiled, so a file stays in one process. In their own order the commands' tests,
# few and slow, come first, and no worker is left alone with them at the end.
PYTEST_WORKERS := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-slow mutants lint format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c "$(IS_NEW)" 2>/dev/null && $(IS_THE_NAMED_ONE) || { \
	  $(PYTHON) -c "$(REFUSE_OLD)" && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/python -m experiments.demo --out demo

test: install
	$(BIN)/python -m pytest $(PYTEST_WORKERS) -m "not slow"

test-slow: install
	$(BIN)/python -m pytest $(PYTEST_WORKERS)

mutants: install
	$(BIN)/python -m tests.mutants

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build .jax_cache *.egg-info
