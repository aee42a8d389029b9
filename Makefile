# make demo: the whole bootstrapping on the sample data. make test: the tests; make test ROOM=capfilt: those of one package; make
# test-all: those too that take minutes and rarely break. Each sets up what it needs.
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

.PHONY: demo test test-all data setup clean

demo: setup data
	python -m flows.bootstrap

# two processes, each takes whole files, the longest first (tests/support/order.py)
PYTEST := python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow" tests/$(ROOM)

test-all: setup
	$(PYTEST)

setup: $(VENV)/installed

# the marker is written last: an interrupted installation is done again
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# the sample data, unless a data folder is there already
data: setup
	@test -d data || python -m blip_core sample --out data

clean:
	rm -rf artifacts .work data
