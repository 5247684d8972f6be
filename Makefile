# `make` or `make help` lists the commands. Needs GNU make and Python 3.11 to 3.14, nothing else.
#
# All paths are relative, so that the repository may lie in a folder with spaces in its name.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
JOBS ?= 2
EXTRAS ?= dev

# A relative folder in UNETLIB_DATA or UNETLIB_HOME counts from where make was started. With
# `make -C` that is the calling shell's folder, PWD. Make tells -C by a w among its flags, unless it
# was asked to be quiet; called by a program, PWD may be that program's and is not trusted.
LETTERS := $(firstword -$(MAKEFLAGS))
QUIET := $(findstring s,$(LETTERS)) $(filter --no-print-directory,$(MAKEFLAGS))
START := $(if $(strip $(findstring w,$(LETTERS)) $(QUIET)),$(or $(PWD),$(CURDIR)),$(CURDIR))
absolute = $(if $(filter /% ~%,$(firstword $(1))),$(1),$(START)/$(1))
ifdef UNETLIB_DATA
override UNETLIB_DATA := $(call absolute,$(UNETLIB_DATA))
export UNETLIB_DATA
endif
ifdef UNETLIB_HOME
override UNETLIB_HOME := $(call absolute,$(UNETLIB_HOME))
export UNETLIB_HOME
endif

# The kernel of this environment, whatever other kernels are registered on the computer.
export JUPYTER_PREFER_ENV_PATH := 1

# Tests see neither the user's data nor their profile nor results of an earlier run. One thread a
# worker: two workers with two threads each would wait for each other on two cores.
TEST_ENV = env -u UNETLIB_DATA UNETLIB_PROFILE=ci UNETLIB_HOME="$(CURDIR)/build/test" \
	OMP_NUM_THREADS=1

ifdef OFFLINE
PIP_SOURCE := --no-index --find-links wheelhouse
endif
PIP := $(PY) -m pip --disable-pip-version-check
CONSTRAINED := --constraint constraints.txt $(PIP_SOURCE)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# Is PyTorch's own index reachable? Asked with a short limit, so that being offline costs seconds.
TORCH_PROBE := import urllib.request; \
	urllib.request.urlopen("$(TORCH_INDEX)/torch/", timeout=10).close()

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup notebooks test test-all coverage test-lowest bench ablations pretrained lab refresh faults handout site lint \
	wheelhouse lock clean

help: ## list these commands
	@echo "make COMMAND, where COMMAND is one of:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1 ## /p' Makefile | awk -F ' ## ' '{printf "%-14s %s\n", $$1, $$2}'
	@echo "Settings:"
	@echo "  UNETLIB_DATA=FOLDER  a data set in Carvana's layout instead of data/sample"
	@echo "  UNETLIB_PROFILE=ci|laptop|full  how much the notebooks compute (default: laptop)"
	@echo "  TORCH=cpu            at the first call: PyTorch without GPU support (0.2 GB, not 5)"
	@echo "  OFFLINE=1            at the first call: install from wheelhouse/, without a network"
	@echo "  PYTHON=python3.12    at the first call: which Python to use"
	@echo "  EXTRAS=dev,openvino  at the first call: with OpenVINO, one more runtime to compare"

setup: $(STAMP) ## make .venv with all packages (the other commands do so when needed)

notebooks: $(STAMP) ## run the six notebooks; results go to build/, the committed files stay
	@$(PY) tools/course.py run $(NOTEBOOKS)

test: $(STAMP) ## unit tests, then every notebook cell in the ci profile (minutes)
	@rm -rf build/test
	@$(TEST_ENV) $(PY) -m pytest tests notebooks $(PYTEST_NOTEBOOKS) -m "not slow" $(PYTEST)

test-all: $(STAMP) ## the same, with the slow tests, branch coverage and a second notebook runner
	@rm -rf build/test
	@$(TEST_ENV) $(PY) -m pytest tests notebooks $(PYTEST_NOTEBOOKS) $(COVERAGE) $(PYTEST)
	@$(TEST_ENV) $(PY) -m pytest notebooks -p no:nbval --nbmake --nbmake-timeout=600 --numprocesses=$(JOBS)

coverage: $(STAMP) ## the tests of `make test`, with branch coverage (half as long again)
	@rm -rf build/test
	@$(TEST_ENV) $(PY) -m pytest tests notebooks $(PYTEST_NOTEBOOKS) $(COVERAGE) -m "not slow" $(PYTEST)

# lowest-direct: the lower bounds of pyproject.toml, and of what these packages need, the newest.
# Ready-made packages only: on a Python that is newer than a bound, the oldest one made for it.
test-lowest: $(VENV)/made ## the fast unit tests with the oldest packages allowed (downloads 3 GB)
	@$(PY) -m venv build/lowest && build/lowest/bin/python -m pip install --quiet uv
	@build/lowest/bin/uv pip compile --quiet --python build/lowest --resolution lowest-direct \
		--no-build --extra dev --output-file build/lowest.txt pyproject.toml
	@build/lowest/bin/uv pip install --python build/lowest --no-build --requirements build/lowest.txt
	@build/lowest/bin/uv pip install --quiet --python build/lowest --no-deps --editable .
	@rm -rf build/test
	@$(TEST_ENV) build/lowest/bin/python -m pytest tests -m "not slow" --numprocesses=$(JOBS) $(PYTEST)

# Cells of one notebook stay together on one worker (loadscope). Not reordered: the test in JupyterLab
# would come last, alone, while the other workers wait.
PYTEST_NOTEBOOKS := --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
	--numprocesses=$(JOBS) --dist=loadscope --no-loadscope-reorder
COVERAGE := --cov=unetlib --cov-config=pyproject.toml

bench: $(STAMP) ## how fast training and inference are against the textbook way (minutes; not a test)
	@$(PY) tests/bench_training.py
	@$(PY) tests/bench_inference.py

ablations: $(STAMP) ## train the compared recipes again, three seeds each, into notebooks/ablations.csv
	@$(PY) tools/ablations.py

# REAL=FOLDER also judges them on real cars, which are never trained on.
pretrained: $(STAMP) ## render further cars, train data/pretrained anew, write its card (hours on a CPU)
	@$(PIP) install --quiet $(CONSTRAINED) --editable ".[lab,$(EXTRAS),studio]"
	@$(PY) tools/pretrained.py $(if $(REAL),--real "$(REAL)")

lab: $(STAMP) ## open the notebooks in JupyterLab: copies to work in, in my-notebooks/
	@$(PY) tools/course.py copies $(NOTEBOOKS)
	@$(PY) -m jupyter lab my-notebooks

refresh: $(STAMP) ## run the committed notebooks again, in place (laptop profile); renew their glossary
	@env -u UNETLIB_DATA -u UNETLIB_PROFILE $(PY) tools/course.py refresh $(NOTEBOOKS)
	@$(PY) tools/course.py glossary $(NOTEBOOKS)

faults: $(STAMP) ## only the tests that try what can go wrong
	@$(TEST_ENV) $(PY) -m pytest tests -m "fault and not slow" --numprocesses=$(JOBS) $(PYTEST)

handout: $(STAMP) ## copies without outputs and solutions into build/handout
	@$(PY) tools/course.py handout $(NOTEBOOKS)

# MathJax comes from npm, and stays in build/npm.
site: $(STAMP) ## the course as a site in build/site: notebooks, glossary, guides, reference, search
	@$(PIP) install --quiet $(CONSTRAINED) --editable ".[$(EXTRAS),site]"
	@$(PY) tools/site/build.py

lint: $(STAMP) ## ruff over code and notebooks
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

wheelhouse: $(VENV)/made ## download all packages for this kind of computer into wheelhouse/
	@$(call torch,download --dest wheelhouse)
	@$(PIP) download --dest wheelhouse --find-links wheelhouse --constraint constraints.txt \
		--progress-bar off hatchling editables ".[lab,$(EXTRAS)]"
	@rm -f wheelhouse/unetlib-*
	@echo "wheelhouse/ is complete: copy it next to the Makefile elsewhere, then make OFFLINE=1 setup"

lock: $(VENV)/made ## renew constraints.txt from pyproject.toml with the newest versions
	@$(PY) -m venv build/lock && build/lock/bin/python -m pip install --quiet uv
	@printf '%s\n' \
		'# One version of every package, for Linux, macOS (arm64) and Windows, Python 3.11 to 3.14.' \
		'# Made from pyproject.toml by `make lock`; do not edit.' > build/constraints.txt
	@build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--fork-strategy fewest --extra lab --extra dev --extra openvino --extra browser \
		--extra site --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links pyproject.toml >> build/constraints.txt
	@mv build/constraints.txt constraints.txt

clean: ## remove build/, runs/, models/, page/ and caches; .venv, data and my-notebooks stay
	rm -rf build runs models page .cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* \
		unetlib.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './my-notebooks/*' -prune -exec rm -rf {} +

# Two steps: an interrupted installation is continued, a finished one is not repeated.
$(STAMP): $(VENV)/made pyproject.toml constraints.txt
	@$(call torch,install)
	@echo "Installing the packages into $(VENV) (some minutes the first time) ..."
	@$(PIP) install $(CONSTRAINED) --editable ".[lab,$(EXTRAS)]"
	@touch $@

# A Python qualifies if all packages are made for it (requires-python in pyproject.toml) and it can
# make environments (Debian splits that part off).
PYTHONS := python3 python3.13 python3.12 python3.11 python3.14 python
$(VENV)/made:
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
				2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv $(VENV) && touch $@; exit; \
		fi; \
	done; \
	echo "No Python 3.11 to 3.14 with the venv module found: install one from python.org" \
		"(Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3." >&2; \
	exit 1

# TORCH=cpu takes torch and torchvision from PyTorch's own index, both or neither: a torchvision of
# the one kind cannot be imported with a torch of the other.
ifeq ($(TORCH)$(OFFLINE),cpu)
define torch
if ! $(PY) -c '$(TORCH_PROBE)' 2>/dev/null; then \
	echo "PyTorch's own index is not reachable: taking torch from the package registry (5 GB on Linux)."; \
elif $(PIP) $(1) --quiet --no-deps --constraint constraints.txt --index-url $(TORCH_INDEX) \
		torch torchvision; then \
	echo "Took the CPU-only torch and torchvision from PyTorch's own index."; \
else \
	echo "PyTorch's own index lacks the pinned versions: taking torch from the package registry (5 GB on Linux)."; \
fi
endef
endif
