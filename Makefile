# Two commands, each doing all its own set-up:
#   make train              tune the shipped detector on a generated task; ARGS="..." are passed on
#   make test               run the tests
# Variables: PYTHON (interpreter), VENV (folder of the virtual environment), TORCH (what pip installs if torch is absent).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=

RUN := $(VENV)/bin/python
SOURCES := pyproject.toml setup.py $(shell find csrc _build_backend -type f -not -name '*.pyc')

.PHONY: train test

train: $(VENV)/installed
	$(RUN) -m sdpt_ext.train $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest $(ARGS)

$(VENV)/installed: $(SOURCES) | $(RUN)
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install $(TORCH)
	$(RUN) -m pip install --editable ".[test]"
	touch $@

$(RUN):
	$(PYTHON) -m venv $(VENV)
