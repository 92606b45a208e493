# Every target sets up what it needs in .venv and reuses it. Needed beforehand: make and
# Python 3.11 or later. Another interpreter: `make test PYTHON=/path/to/python3.12`.

.DEFAULT_GOAL := help
.PHONY: help demo test test-measure lint format bench golden clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
MODERN := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	if $$python -c '$(MODERN)' 2>/dev/null; then echo $$python; break; fi; done)
UV := $(shell command -v uv 2>/dev/null)
# A comma, for the arguments of `call`.
, := ,
# Test processes; each compiles its own programs, so more than cores does not pay.
WORKERS ?= 2
PICTURE ?= pareto.png

# $(call install,EXTRAS): the package in editable mode, with pinned dependencies and
# built by a pinned setuptools. uv is faster where it is installed; pip has to do.
WITH_PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1)
WITH_UV = $(UV) pip install --quiet --python $(BIN)/python $(1)
either = $(if $(UV),$(call WITH_UV,$(1)) ||) $(call WITH_PIP,$(1))
define install
{ $(call either,--constraint constraints.txt setuptools); } && \
	{ $(call either,--constraint constraints.txt --no-build-isolation \
	--editable '.[$(1)]'); }
endef

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Find the best deployment of a 70B model on H100 and B200
	$(BIN)/jaxlens explore meta-llama/Llama-3.1-70B-Instruct \
		--gpu h100-sxm,b200-sxm --prompt 1024 --output 256 \
		--ttft 1.0 --tpot 0.05 --plot $(PICTURE)

test: $(VENV)/.test ## Run the tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --ignore=tests/measure

test-measure: $(VENV)/.measure ## Run the tests of the measuring harness (installs torch)
	@if [ -d tests/measure ]; then $(BIN)/python -m pytest -q tests/measure; \
	else echo "There are no measuring tests yet: tests/measure does not exist."; fi

lint: $(VENV)/.test ## Check style, formatting, types and import floors
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright
	$(BIN)/lint-imports

format: $(VENV)/.test ## Format the code and fix what can be fixed
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.test ## Run the benchmarks
	@set -- benchmarks/*.py; \
	if [ ! -e "$$1" ]; then echo "There are no benchmarks yet."; exit 0; fi; \
	for script in "$$@"; do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

golden: $(VENV)/.test ## Regenerate the golden predictions, on purpose
	$(BIN)/python -m tests.golden
	$(BIN)/python -m tests.golden_errors

clean: ## Remove builds and caches, and keep .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(MODERN)'; then \
		echo "make: expected Python 3.11 or later, got $$($(or $(PYTHON),python3) \
	--version 2>&1); install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: expected a working venv module (Debian and Ubuntu: apt install \
	python3-venv)" >&2; exit 1; }
	@touch $@

# The stamps: an environment is reused until its inputs change.
$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing jaxlens with plotting"
	@$(call install,plot)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing jaxlens with what the tests need"
	@$(call install,plot$(,)calibration$(,)notebooks$(,)dev)
	@touch $@

$(VENV)/.measure: $(VENV)/.test
	@echo "Installing torch for the measuring harness"
	@$(call install,measure)
	@touch $@
