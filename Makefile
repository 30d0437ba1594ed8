# The whole set-up, then the course. Each target prepares .venv once and reuses it.
#
#   make run           every notebook, with an index of figures and verdicts
#   make lab           the notebooks, live
#   make docs          the site: course, verdict, commands and API in site/index.html, without a network
#   make check         style, the mathematics that is fast to test, one notebook: before every commit
#   make test          style, unit tests, every notebook against its stored outputs, widgets and site in a browser
#   make test-all      that and the exhaustive versions: many kills, every gpu profile run small, every page in the browser
#   make reproduce     the claims: what has no record is run, then all are decided; ARGS="--profile smoke" for minutes

LOCK    ?= requirements.lock  # exact versions; LOCK= takes the newest that pyproject.toml allows
WORKERS ?= 2                  # processes of `make test`, one thread each so that they do not fight
ARGS    ?=                    # more for `isodiff run` or `reproduce`, such as ARGS="04 -p num_live_steps=50"

lock    := $(strip $(LOCK))
BIN     := .venv/bin
READY   := .venv/ready
PYTEST  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(strip $(WORKERS))
NBVAL   := --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env
FAST    := tests/geometry tests/datasets $(addprefix tests/,test_names.py test_setup.py test_notebooks.py test_course.py)

.DEFAULT_GOAL := help
.PHONY: help setup run reproduce docs check test test-all lab lint clean

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

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet && echo "The site: site/index.html"

check: lint
	$(PYTEST) --dist worksteal -m "not browser and not exhaustive" $(FAST)
	$(PYTEST) $(NBVAL) notebooks/13_verdict.ipynb

test: lint
	$(PYTEST) --dist worksteal -m "not browser and not exhaustive" tests
	$(PYTEST) $(NBVAL) notebooks
	$(PYTEST) --dist worksteal -m "browser and not exhaustive" tests/browser

test-all: test
	$(PYTEST) --dist worksteal -m exhaustive tests

lab: $(READY)
	$(BIN)/jupyter lab notebooks/01_s2_toy_autoencoder.ipynb

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf .venv runs site build isodiff.egg-info .pytest_cache .ruff_cache .hypothesis
