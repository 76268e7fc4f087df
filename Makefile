# make demo   install, then the whole method on drawn chest X-rays (resumes where it stopped)
# make test   install, then every check; what CI runs
# make nightly   the long checks that `make test` leaves out: the same things at more settings
# make lint   the checks that run no test         make format   rewrite the files in house style
# make lock   recompute constraints.txt           make clean    remove what make built; runs/ stays
# make image  a container image by docker, podman or buildah; EXTRAS=gpu for GPUs

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test nightly lint format lock image clean

# The first of these that runs and is 3.10 to 3.13; or say `make test PYTHON=/path/to/python`.
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.10; do \
  "$$p" -c '$(SUPPORTED)' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export TF_CPP_MIN_LOG_LEVEL ?= 2

demo: .venv/installed
	$(BIN)/python -m tf_detectorgan.train --flagfile=configs/demo.flags

# Files side by side, in the order of tests/conftest.py: the image test comes first, so that it does not run alone at the end.
TEST_WORKERS ?= 2

test: lint
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

nightly: .venv/installed-test
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m nightly

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/retired_words.py

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/made:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not a Python 3.10 to 3.13 (TensorFlow 2.21 runs on no other)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	@touch $@

.venv/installed: setup.py constraints.txt .venv/made
	@echo "Installing TensorFlow and what else setup.py names into .venv (once, 1 to 4 minutes) ..."
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/installed-test: setup.py constraints.txt .venv/made
	@echo "Installing TensorFlow, the test tools and what else setup.py names into .venv (once, 1 to 4 minutes) ..."
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

lock: .venv/made
	"$(BIN)/python" -m venv build/lock
	build/lock/bin/pip --disable-pip-version-check install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-annotate \
	  --custom-compile-command 'make lock' --extra test --extra k8s --extra gpu --extra kerashub setup.py -o constraints.txt

EXTRAS ?=
BASE_IMAGE ?= docker.io/library/python:3.11-slim
IMAGE ?= tf_detectorgan:$(or $(EXTRAS),cpu)
# The first that is there; docker is if its daemon answers.
BUILDER ?= $(shell for b in docker podman buildah; do \
  { command -v $$b && { test $$b != docker || docker info; }; } >/dev/null 2>&1 && { echo $$b; break; }; done)
# Passed on to the builder: --secret, or (podman, buildah) -v for a package index on this machine.
BUILD_FLAGS ?=
BUILD_docker := build
BUILD_podman := build
BUILD_buildah := bud --isolation chroot

image:
	@test -n "$(BUILD_$(BUILDER))" || { echo "error: none of docker (with a daemon that answers), podman and buildah found; install one" >&2; exit 1; }
	$(BUILDER) $(BUILD_$(BUILDER)) $(BUILD_FLAGS) --build-arg BASE_IMAGE="$(BASE_IMAGE)" --build-arg EXTRAS="$(EXTRAS)" \
	  --build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' tf_detectorgan/__init__.py)" \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" -f docker/Dockerfile -t "$(IMAGE)" .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find tf_detectorgan tests -name __pycache__ -prune -exec rm -rf {} +
	@test ! -d runs || echo "runs/ is kept: it holds trained models; delete it yourself if you mean it"
