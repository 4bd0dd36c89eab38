# alias-milter: `make` lists what can be done here. Written for Debian 12 and later.

# Any Python from 3.11 on: make test PYTHON=python3.12
PYTHON ?= python3
# Tests that run at a time; they wait for mail servers more than they compute.
WORKERS ?= 3
# More arguments for pytest: make test ARGS="tests/unit -k address"
ARGS ?=
# How long `make soak` breaks things, and what repeats a run's faults and messages.
MINUTES ?= 10
SEED ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Debian's mail servers live in sbin, which `su` and ordinary users do not have on their PATH.
export PATH := $(PATH):/usr/sbin:/sbin
# The mail server of the demo: make demo MTA=sendmail
MTA ?= postfix
# What `make fuzz` attacks (tests/fuzz/targets.py; protocol: the daemon), and for how long.
TARGET ?= addresses
SECONDS ?= 60
# Without the tests that need root: make test ALIAS_MILTER_SKIP_MTA=1
export ALIAS_MILTER_SKIP_MTA
# Put before a command: nothing for root, else sudo, and no root-owned caches in the checkout.
AS_ROOT = $(if $(filter 0,$(shell id -u))$(filter 1,$(ALIAS_MILTER_SKIP_MTA)),,sudo env \
	PATH="$$PATH" PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS="-p no:cacheprovider" \
	HYPOTHESIS_STORAGE_DIRECTORY=/root/.cache/alias-milter/hypothesis)
# What tells one Python from another; asked of $(PYTHON) and of the virtual environment.
IDENTITY := import sys; print(sys.version_info[:2], sys.base_prefix)

.PHONY: help setup python packages mta root lint test demo bench fuzz soak clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo 'Settings: PYTHON=python3.12; test: ARGS="-k address", WORKERS=3; demo: MTA=sendmail, KEEP=1;'
	@echo '          bench: QUICK=1, ONLY="forward rejects".'

setup: $(READY) ## install what is missing: Debian packages, and the Python ones in .venv

lint: setup ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: root lint ## lint, then all the tests, real Postfix and Sendmail included (root or sudo)
	$(AS_ROOT) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

demo: mta setup root ## real mail through a real Postfix, or MTA=sendmail; KEEP=1 leaves it running
	$(AS_ROOT) $(BIN)/python -m tests.demo --mta '$(MTA)' \
	  $(if $(filter-out 0 no,$(KEEP)),--keep)

bench: root $(VENV)/.bench build/load ## how fast it is, as ratios; on a machine that is idle
	$(AS_ROOT) $(BIN)/python -m benchmarks \
	  $(if $(filter-out 0 no,$(QUICK)),--quick) $(addprefix --only ,$(ONLY))

build/load: benchmarks/load.c
	@mkdir -p build
	gcc -O2 -Wall -Wextra -Werror -pthread -o $@ $<

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 \
	  --editable '.[bench]'
	@touch $@

fuzz: setup ## look for input that breaks a parser: make fuzz TARGET=rules SECONDS=300
	@$(BIN)/python -c 'import atheris' 2>/dev/null || [ "$(TARGET)" = protocol ] \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	PYTHONPATH=milter $(BIN)/python -m tests.fuzz.run $(TARGET) $(SECONDS)

soak: setup root ## mail flows while things break, and an account of each message: MINUTES=10, SEED=
	$(AS_ROOT) $(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) build dist milter/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): setup.cfg pyproject.toml | python packages
	@echo 'Installing the Python packages in $(VENV): about a minute.'
	$(PYTHON) -m venv $(VENV)
	@# The packaging test builds a wheel with this setuptools, so that no test needs the network.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 \
	  'setuptools>=77' --editable '.[test]'
	@touch $@

# A virtual environment of another Python, or of one that is gone, is made anew.
python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'alias-milter needs Python 3.11 or later, and there is no $(PYTHON) here.' >&2; \
	  echo 'Install it (apt-get install python3) or name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "alias-milter needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo 'Name another one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@[ ! -e $(VENV) ] || [ "$$($(BIN)/python -c '$(IDENTITY)' 2>&1)" = "$$($(PYTHON) -c '$(IDENTITY)')" ] \
	  || rm -rf $(VENV)

mta:
	@case '$(MTA)' in postfix|sendmail) ;; *) \
	  echo 'MTA=$(MTA): there is postfix, and there is sendmail.' >&2; exit 2 ;; esac

packages: python
	@tests/debian-packages $(PYTHON)

# Tests and demo start mail servers of their own, which give up root themselves.
root: setup
	@[ "$$(id -u)" = 0 ] || [ "$$ALIAS_MILTER_SKIP_MTA" = 1 ] || sudo -n true 2>/dev/null \
	  || { [ -t 0 ] && sudo true; } || { \
	  echo 'A private Postfix needs root to start: run make as root, or as a user with sudo.' >&2; \
	  echo 'The tests without it: make test ALIAS_MILTER_SKIP_MTA=1' >&2; exit 1; }
