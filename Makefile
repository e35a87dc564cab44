# galray: make quickstart runs the whole chain on a mock survey; make test passes the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

help: ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.installed ## Set up, and run the whole chain on a mock survey (15 minutes)
	@$(RUN) jobs/quickstart.py $(if $(ROOT),--root $(ROOT)) $(if $(RESUME),--resume)

test: $(VENV)/.installed-dev ## Set up, check the code and run all tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	$(RUN) -m pytest tests/unit --numprocesses 2
	$(RUN) -m pytest tests/integration --numprocesses 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-dev ## Run the benchmarks; each prints one line of JSON
	@for script in tests/benchmarks/*_speed.py tests/benchmarks/*_memory.py; do echo "$$script"; $(RUN) $$script || exit 1; done

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache galray.egg-info tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "galray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and exact: a newer one, or one that pip chooses freely, brings gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable .[dev]
	@touch $@

.PHONY: help quickstart test bench clean
