# Each target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export GRADIO_ANALYTICS_ENABLED := False
export HF_HUB_OFFLINE := 1

.PHONY: help demo tasks data check test test-all docs setup clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup data ## the whole bootstrapping on the sample data
	python -m flows.bootstrap

tasks: demo ## the downstream tasks on the sample data, after the demo, and a table of them
	@test -d tasks || python -m blip_core sample --tasks --out tasks
	python -m flows.bootstrap evaluate_task register_task report --set-file configs/tasks.yaml
	python -m blip_core tasks

data: setup ## the sample data, unless a data folder is there already
	@test -d data || python -m blip_core sample --out data

check: setup ## format, lint, types and spelling
	ruff format --check .
	ruff check .
	mypy
	codespell *.md *.yaml *.yml *.toml *.cff Makefile .ci .github benchmarks blip_core configs docs flows labels mlflow

# Four processes for two cores, for tests wait for programs. Each takes whole files, the longest first
# (tests/support/order.py).
PYTEST := python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup ## the tests; with ROOM=capfilt those of one package
	$(PYTEST) -m "not slow" tests/$(ROOM)

test-all: setup ## those too that take minutes and rarely break
	$(PYTEST)

docs: setup ## the site of docs/
	mkdocs build --strict

setup: $(VENV)/installed ## the environment in .venv, anew after a change of pyproject.toml or constraints.txt

# Torch comes by pip, which heeds pip's own settings: a CPU build or a mirror that they name, uv would pass by. uv keeps what fits the pins
# and installs the rest in a quarter of pip's time; where it has no build, or can't reach its index, pip does that too.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# the marker is written last: an interrupted installation is done again
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --only-binary uv uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]' \
		|| { echo 'now by pip, which takes longer'; $(PIP) --editable '.[test]'; }
	touch $@

clean: ## remove what runs have made, the data too
	rm -rf artifacts .work data
