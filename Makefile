# make demo    set up, then train the WaltzRL pair into runs/demo (150 steps, not 200) and write its report
# make test    set up, then lint, check types and run the tests
# make lint    the first two of these
# make interop set up, with LiteLLM and Inspect in .venv-interop, then try choreo serve with them as they are
# make bench   set up, with the reference library, then time choreo beside it
#
# Everything is installed into .venv; PYTHON names the interpreter that makes it (3.11 or later).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := runs/demo
INTEROP := .venv-interop

.PHONY: demo test lint bench interop
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@if [ -f $(DEMO)/summary.json ] && [ -f $(DEMO)/report.html ]; then \
		echo "$(DEMO) is finished; its report is $(DEMO)/report.html"; \
		echo "(move the folder away to train again, or: $(BIN)/choreo train waltz --run DIR)"; \
	elif [ -f $(DEMO)/summary.json ]; then $(BIN)/choreo report $(DEMO); \
	elif [ -f $(DEMO)/recipe.toml ]; then $(BIN)/choreo train --resume $(DEMO); \
	else $(BIN)/choreo train waltz --run $(DEMO) --set learning.steps=150; fi

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/mypy

interop: $(VENV)/.installed-dev $(INTEROP)/.installed
	CHOREO_LITELLM=$(CURDIR)/$(INTEROP)/bin/litellm $(BIN)/python -m pytest tests/test_interop.py -v

bench: $(VENV)/.installed-bench
	$(BIN)/choreo bench

# torch goes first and alone, so that nothing that depends on it can draw another build of it.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,swarm,serve]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	@touch $@

# LiteLLM's proxy pins what choreo needs in other versions, so it has a place of its own.
$(INTEROP)/.installed: constraints-interop.txt
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]' inspect-ai openai \
		--constraint constraints-interop.txt
	@touch $@
