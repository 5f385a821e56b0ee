# make build  what `make run` sets up, and no more: compiles the hot path where there is a C compiler
# make run    everything a working server needs, then `edge serve`       ARGS="--config edge.toml" are passed on
# make test   linters, types, import rules, tests                        ARGS="tests/sip -k register" are passed to pytest
# make test-compiled   the tests of compiled modules, with the compiled ones; part of `make test`
# make lint   the linters, types and import rules alone
# make fuzz   hostile octets for whatever reads SIP or MSRP, for some time EDGE_FUZZ_SECONDS=60 is how long, EDGE_FUZZ_FRAMES=1000000 how many
#             go over sockets; see docs/operations.md
# make soak   files of 5 GiB through one and two relays, some minutes    ARGS="-k tls" for some of them
# make chaos  two edges and a registrar, killed and cut off at random    EDGE_CHAOS_SECONDS=600 is how long, EDGE_CHAOS_SEED repeats one; needs root
# make clean  removes what the above made; edge.db and the certificate stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS   ?=

SOURCES := pyproject.toml setup.py $(shell find edge -name '*.py')
SITE     = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What runs once more with the compiled modules: all that looks at them, and the server as a process where most meets.
COMPILED := auth connections demux fuzz msrp outbound sip websocket test_compiled.py \
            $(addprefix server/test_,one_port.py torture.py bad_input.py calls.py edge_role.py msrp.py msrp_relays.py websocket.py limits.py)

.PHONY: build run test test-compiled lint fuzz soak chaos clean

build: $(VENV)/.installed

run: $(VENV)/.installed
	@exec $(BIN)/edge serve $(ARGS)

test: lint $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory test-compiled
endif

test-compiled: $(VENV)/.installed $(VENV)/.installed-test
	EDGE_TEST_COMPILED=1 $(BIN)/python -m pytest -o 'pythonpath=$(SITE) .' -m 'not source and not slow' $(addprefix tests/,$(COMPILED))

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict edge
	$(BIN)/lint-imports --no-logo

# Guided by coverage with atheris; where that has no wheel, the same targets with random changes alone.
fuzz: export EDGE_FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed-test
	@if $(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --only-binary :all: atheris; then \
	  $(BIN)/python -m tests.fuzz.run $(ARGS); \
	else \
	  echo "atheris is not to be had for this Python: changing the seeds at random instead"; \
	  $(BIN)/python -m pytest tests/fuzz/test_targets.py $(ARGS); \
	fi
	$(BIN)/python -m pytest -s tests/fuzz/test_sockets.py

# -s, because it prints what each transfer took.
soak: $(VENV)/.installed-test
	EDGE_SOAK=1 $(BIN)/python -m pytest -s -m slow tests/server/test_msrp_files.py $(ARGS)

chaos: export EDGE_CHAOS_SECONDS ?= 600
chaos: $(VENV)/.installed-test
	$(BIN)/python -m tests.chaos.run $(ARGS)

# The stamps are newer than what was installed: a second run does nothing here.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@echo "installing sip-msrp-edge into $(VENV); with a C compiler the hot path is compiled, which takes a minute or two"
	@rm -rf build
	@$(PIP) install .
	@touch $@

# The tests run the sources as they are; they need what the package needs, and their own tools.
$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing the test tools into $(VENV)"
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["test"], sep="\n")' > $(VENV)/requirements.txt
	@$(PIP) install --requirement $(VENV)/requirements.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "the venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find edge tests -name __pycache__ -type d -prune -exec rm -rf {} +
