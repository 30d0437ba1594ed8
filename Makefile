# The whole set-up, then the course. Each target prepares .venv once and reuses it.
#
#   make run           every notebook at profile cpu, with an index of figures and verdicts
#   make test          style, unit tests, every notebook against its stored outputs, and the browser test
#   make test-browser  the widgets in JupyterLab, in headless Chromium; skipped, saying so, where there is none
#   make reproduce     the claims: what has no record is run, then all are decided; ARGS="--profile smoke" for minutes
#   make lab           the notebooks, live

LOCK    ?= requirements.lock  # exact versions; LOCK= takes the newest that pyproject.toml allows
WORKERS ?= 2                  # processes of `make test`, one thread each so that they do not fight
ARGS    ?=                    # more for `isodiff run` or `reproduce`, such as ARGS="04 -p num_live_steps=50"

lock    := $(strip $(LOCK))
BIN     := .venv/bin
READY   := .venv/ready
SINGLE  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup run reproduce test test-browser lab lint clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

# The stamp is written last, so an interrupted set-up is taken up again. Compiling takes every core where pip would take
# one; a module that is meant for another Python stays as it is.
$(READY): pyproject.toml $(lock)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && found=$$candidate && break; \
	  done; \
	  test -n "$$found" || { \
	    echo "isodiff needs Python 3.11 or newer with its venv module; none was found on PATH." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 1; \
	  }; \
	  echo "Creating .venv with $$($$found --version)"; \
	  $$found -m venv .venv; \
	}
	@echo "Installing isodiff and what it needs; the first time downloads several gigabytes"
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[all]" $(if $(lock),--constraint $(lock))
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	$(BIN)/isodiff fetch-weights
	@touch $@

setup: $(READY)

run: $(READY)
	$(BIN)/isodiff run $(ARGS)

reproduce: $(READY)
	$(BIN)/isodiff reproduce $(ARGS)

test: lint
	$(SINGLE) $(BIN)/python -m pytest --numprocesses $(strip $(WORKERS)) --dist worksteal -m "not browser" tests
	$(SINGLE) $(BIN)/python -m pytest --numprocesses $(strip $(WORKERS)) \
	  --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env notebooks
	@$(MAKE) --no-print-directory test-browser

# a JupyterLab and a browser to each process; screenshots go to runs/browser
test-browser: $(READY)
	$(SINGLE) $(BIN)/python -m pytest --numprocesses $(strip $(WORKERS)) --dist worksteal -m browser tests/browser

lab: $(READY)
	$(BIN)/jupyter lab notebooks/01_s2_toy_autoencoder.ipynb

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf .venv runs build isodiff.egg-info .pytest_cache .ruff_cache .hypothesis
