# The two commands a newcomer needs: `make demo` and `make test`. Each makes .venv itself.
# `PYTHON=python3.12 make env` picks another interpreter (3.11 or newer).

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# libtpu has an environment of its own: where it is installed, JAX looks for TPUs and warns.
TPU_VENV := .venv-tpu
TPU_READY := $(TPU_VENV)/.ready
DEMO_FLAGS ?=
TEST_FLAGS ?=

# The stamp holds the interpreter's name; asking for another one by name makes the environment anew.
ifdef PYTHON
ifneq ($(shell cat $(READY) 2>/dev/null),$(PYTHON))
$(READY): FORCE
endif
endif
PYTHON ?= python3

.PHONY: demo test test-tpu lint format env clean FORCE

demo: env
	$(BIN)/kinetics demo $(DEMO_FLAGS)

test: env
	$(BIN)/python -m pytest -n auto $(TEST_FLAGS)

# Compiles decode steps of Qwen3-32B for TPUs that need not be there, and prints what memory they need.
test-tpu: $(TPU_READY)
	$(TPU_VENV)/bin/python -m pytest -o addopts='--import-mode=importlib -ra' -n 2 tests/tpu $(TEST_FLAGS)

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kinetics_jax needs Python 3.11 or newer; got %d.%d. Use PYTHON=python3.12 make env" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@echo $(PYTHON) > $(READY)

# Only libtpu is installed here; all else is looked up in the first environment.
$(TPU_READY): $(READY)
	$(BIN)/python -m venv --clear --without-pip $(TPU_VENV)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > "$$($(TPU_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/other.pth"
	$(BIN)/python -m pip --python $(TPU_VENV)/bin/python install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt 'jax[tpu]'
	@touch $(TPU_READY)

# Back to a fresh clone, except for results in out/ that are not the demo's.
clean:
	rm -rf $(VENV) $(TPU_VENV) build dist out/demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
