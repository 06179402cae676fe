# Everything a newcomer, a contributor and CI run. Variables can be set on the command line:
#   make test PYTEST_ARGS='-k shards'    make demo ARGS='trainer=cpu'    make venv VENV=/elsewhere PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Containers often forbid byte code. It takes importing PyTorch, Lightning and diffusers from 18 to 7 CPU seconds, at every start.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV ?= .venv
# Three workers for two cores: many tests wait, for processes that they kill, servers or pages. Long ones start several processes each.
WORKERS ?= 3
PYTEST_ARGS ?= -n $(WORKERS) --dist worksteal --durations=30
ARGS ?=
PYTHONS ?= python3.12 python3.13
SHORT := tests/test_sampler.py tests/shards/test_shards.py tests/conf/test_help.py tests/conf/test_composition.py \
	tests/training/test_train.py tests/generation/test_generate.py -k 'not killed and not broke_off and not ctrl_c' -m 'not long'

BIN := $(VENV)/bin
QUANTIZE := $(abspath $(VENV))/quantize
QUANTIZED := tests/flux/test_quantize.py tests/training/test_adamw_8bit.py
PACKAGING := setup.cfg pyproject.toml constraints.txt
# Errors only, and no byte code: Python writes it when a module is first imported, which most never are.
PIP_INSTALL := -m pip install -qq --no-compile --disable-pip-version-check
PINNED := torch==2.13.0 lightning==2.6.6 pytorch-lightning==2.6.6

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: venv ## install, then train on the embedded miniature and show where the results are
	$(BIN)/python train.py arch=parallel task=identity $(ARGS)

.PHONY: page
page: $(VENV)/.ui ## open a page in the browser for the shipped miniature, or for ARGS='--run RUN_DIR'
	$(BIN)/python -m dsd_lightning.ui $(ARGS)

.PHONY: venv
venv: $(VENV)/.base ## make the virtual environment with the pinned requirements

.PHONY: test
test: $(VENV)/.dev ## run the test suite: about 10 minutes with the installation, on two CPU cores
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not long' $(QUANTIZED:%=--ignore=%)

.PHONY: test-long
test-long: WORKERS = 2
test-long: $(VENV)/.dev $(VENV)/.quantize ## run the tests that `make test` leaves out: long ones, and those of quantised weights
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m long $(QUANTIZED:%=--ignore=%)
	PYTHONPATH=$(QUANTIZE) $(BIN)/python -m pytest $(PYTEST_ARGS) $(QUANTIZED) tests/conf \
		tests/training/test_true_conditions.py -k '(quantize or 8bit or memory or flux_24gb) and not fits'

.PHONY: test-pythons
# pyenv's commands start only the versions that it is told to: here all that it has.
test-pythons: export PYENV_VERSION = $(shell pyenv versions --bare 2> /dev/null | paste -s -d :)
test-pythons: ## a short run on each other Python of PYTHONS; one that is not installed is named and left out
	@for python in $(PYTHONS); do \
	if ! $$python -c '' 2> /dev/null; then \
	echo "$$python is not installed and was LEFT OUT (uv python install, pyenv, or PYTHONS='/path/to/python3.12 ...')"; continue; fi; \
	venv=$(VENV)/python$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(MAKE) --no-print-directory $$venv/.dev VENV=$$venv PYTHON=$$python; \
	$$venv/bin/python -m pytest -q -p no:xdist $(SHORT); \
	done

.PHONY: check
check: lint types contracts ## run all static checks

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev ## mypy
	$(BIN)/mypy

.PHONY: contracts
contracts: $(VENV)/.dev ## import-linter: who may import whom
	$(BIN)/lint-imports --no-cache

.PHONY: gpu
gpu: $(VENV)/.dev $(VENV)/.quantize ## run on one GPU what only a GPU can show, under 10 minutes; DEVICE=cpu: the same script at the smallest size
	PYTHONPATH=$(QUANTIZE) $(BIN)/python -m benchmarks.gpu $(DEVICE:%=--device %) $(ARGS)

.PHONY: reproduce
reproduce: $(VENV)/.dev ## measure the paper's claims on the miniature (many hours; goes on where it was interrupted)
	$(BIN)/python -m benchmarks.reproduce $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.dev ## write docs/images of every page, 1280 and 390 pixels wide, with headless Chromium: about 4 minutes
	PYTHONPATH=tests $(BIN)/python -m support.web.screenshots $(ARGS)

.PHONY: format
format: $(VENV)/.dev ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: constraints
constraints: ## rewrite constraints.txt: the newest releases that setup.cfg admits beside the pinned torch and lightning
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	printf '%s\n' $(PINNED) > "$$scratch/pinned.txt" && \
	$(MAKE) --no-print-directory "$$scratch/venv/.made" VENV="$$scratch/venv" && \
	"$$scratch/venv/bin/python" $(PIP_INSTALL) -c "$$scratch/pinned.txt" -e '.[dev,faces,parquet,quantize,report,trackio,ui]' && \
	{ echo '# Exact versions of all that the package and its extras dev, faces, parquet, quantize, report, trackio and ui install: what was tested.' && \
	  echo '# Made by `make constraints` in a fresh virtual environment (Linux, Python 3.11, torch for CPU).' && \
	  "$$scratch/venv/bin/python" -m pip freeze --exclude-editable | sed 's/+cpu$$//'; \
	} > constraints.txt.new && mv constraints.txt.new constraints.txt

.PHONY: clean
clean: ## remove the virtual environment and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -not -path './outputs/*' -prune -exec rm -rf {} +

$(VENV)/.base: $(PACKAGING) | $(VENV)/.made
	@echo 'Installing into $(VENV) what constraints.txt pins: a minute or two, silent unless something fails.'
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(PACKAGING) | $(VENV)/.made
	@echo 'Installing into $(VENV) what constraints.txt pins: a minute or two, silent unless something fails.'
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev,faces,parquet,report,trackio,ui]'
	@touch $(VENV)/.base $(VENV)/.ui $@

# The extra [quantize] has a folder of its own: peft imports all of it, where it is installed, at every start of every command.
$(VENV)/.quantize: $(VENV)/.dev
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt --no-deps --upgrade --target $(QUANTIZE) torchao bitsandbytes
	@touch $@

$(VENV)/.ui: $(PACKAGING) | $(VENV)/.made
	@echo 'Installing into $(VENV) what constraints.txt pins, with the page: a minute or two, silent unless something fails.'
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[ui]'
	@touch $(VENV)/.base $@

# Debian's Python has no ensurepip unless python3-venv is installed; its pip can fill an environment all the same.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"{sys.executable} is Python {v[0]}.{v[1]}; 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@if $(PYTHON) -c 'import ensurepip' 2> /dev/null; \
	then $(PYTHON) -m venv $(VENV); \
	else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -qq pip; fi
	@touch $@
