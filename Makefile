# `make demo` and `make test` are all that a new machine needs. Everything is installed into .venv.

EXTRAS := cli,test
BIN := .venv/bin
CONSTRAINTS := constraints.txt
# NumPyro iterates over sets of names: with a fixed order, compiled programs are found again in the cache.
export PYTHONHASHSEED := 0

# The first of these that is a Python 3.11 to 3.13 with the venv module. Another one: make demo PYTHON=/path/to/python
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON := $(shell for p in python3.12 python3.11 python3; do \
	if $$p -c '$(USABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench notebooks clean

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 8

demo: .venv/installed ## Calibrate a twin to shipped data and write a report
	$(BIN)/dtwin demo

test: .venv/installed ## Run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/lint ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/lint ## Check types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed ## Compare run times with other packages, and check calibration by simulation
	$(BIN)/python benchmarks/ensemble.py
	$(BIN)/python benchmarks/ess_against_numpyro.py
	$(BIN)/python benchmarks/sbc_one_compartment.py

notebooks: .venv/installed ## Bring scripts over to the notebooks, and run these for their pictures
	$(BIN)/jupytext --sync notebooks/*.py
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean: ## Remove .venv and everything else that make has made
	rm -rf .venv .jax_cache .pytest_cache .ruff_cache .hypothesis build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs the same set in a fifth of the time; where it cannot be had or cannot reach the index, pip does it.
define install
$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -e ".[$(1)]" \
	|| $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[$(1)]"
endef

.venv/installed: pyproject.toml $(CONSTRAINTS)
	@"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { \
		echo 'No Python 3.11, 3.12 or 3.13 with the venv module was found.'; \
		echo 'On Debian and Ubuntu: apt-get install python3 python3-venv'; \
		echo 'Elsewhere, name one: make PYTHON=/path/to/python3.12 ...'; exit 1; } >&2
	"$(PYTHON)" -m venv --clear .venv
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(call install,$(EXTRAS))
	@touch $@

.venv/lint: .venv/installed
	$(call install,lint)
	@touch $@
