# `make` lists the targets. Everything happens in .venv, made on first use with $(PYTHON).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit bench clean locks test-docs test-slurm test-browser test-container

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gantool needs Python 3.10 or later; found " + sys.version.split()[0] + ". Use: make PYTHON=python3.12")'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(VENV)/installed  ## Make .venv and install gantool with the development tools

demo: install  ## Train and score 8 small GANs on `shapes` and print their table (6 minutes on 2 cores after the install)
	$(BIN)/gantool sweep --local configs/quickstart.yaml

test: lint types unit  ## Lint, types and tests: what CI runs

lint: install  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy

unit: install  ## pytest, a process with one thread for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

bench: install  ## Measure the trainer against a bare loop on this machine
	$(BIN)/gantool bench configs/bench.yaml

clean:  ## Remove .venv and caches (never data, runs or sweeps)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Name, Python, what torch must be, further options. The build of torch for the CPU is not on PyPI: name an index or a
# folder that has it, `make locks UV_INDEX=https://download.pytorch.org/whl/cpu` or `UV_FIND_LINKS=folder`.
define lock
	echo '$(3)' | UV_CUSTOM_COMPILE_COMMAND='make locks    (for Python $(2))' $(BIN)/uv pip compile pyproject.toml - --quiet \
		--no-config --generate-hashes --no-annotate --only-binary :all: --python-version $(2) --upgrade \
		--python-platform x86_64-manylinux_2_28 --extra efficientnet --extra tensorboard $(4) \
		--output-file containers/requirements-$(1).lock
endef

locks: install  ## Pin what goes into the image, newly (containers/requirements-*.lock)
	$(call lock,cuda12,3.13,torch<2.11)
	$(call lock,cuda13,3.13,torch<2.15)
	$(call lock,cpu,3.11,torch==2.13.0+cpu,--no-emit-package torchvision)

test-docs: install  ## Commands of the pages for other programs, against the help of those that are here (seconds)
	$(BIN)/python -m pytest -rs tests/test_docs_programs.py

test-slurm: install  ## Sweeps on a real Slurm that is started here (needs root and Debian's packages; minutes)
	$(BIN)/python -m pytest -rs -n 8 --dist worksteal tests/slurm

test-browser: install  ## The page of a report in a real browser (needs chromium; a minute)
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(BIN)/python -m pytest -rs tests/browser

test-container: install  ## Build the image for the CPU and use it (needs Apptainer; minutes)
	$(BIN)/python -m pytest -rs tests/container
