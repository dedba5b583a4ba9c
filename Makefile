# Each target works on a machine that has only Python >= 3.10 and make: it makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extra words for pip, such as an index with CPU-only builds of torch.
PIP_FLAGS ?=
QUIET := --quiet --disable-pip-version-check
# The environment with the lowest versions that pyproject.toml allows, and the tests that run in it.
LOWEST ?= .venv-lowest
LOWEST_PINS ?= constraints-lowest.txt
CORE := tests/capture tests/checkpoints tests/geometry tests/heads tests/loops tests/report tests/runs/test_reading.py \
	tests/data/test_catalog.py tests/ufm/test_certificate.py tests/ufm/test_head.py tests/ufm/test_solvers.py \
	tests/test_imports.py tests/test_examples.py
# What builds the site, mkdocs or zensical, and where.
ENGINE ?= mkdocs
SITE ?= site
# More words for pytest in `make test-all`.
TEST_FLAGS ?=
# The environment with torchvision, timm and peft, whose torch is another than that of constraints.txt, and its tests.
NETWORKS ?= .venv-networks
NETWORKS_PINS := torch==2.14.1 torchvision==0.29.1 timm==1.0.31 peft==0.21.2
NETWORKS_TESTS := tests/networks tests/heads/test_linear.py -k "torchvision or timm or transformers or peft"
# Options of the demo's run, such as --epochs 3.
DEMO ?=

.PHONY: demo test test-all test-lowest test-networks test-python lint bench docs docs-both dist clean

demo: $(VENV)/.demo
	$(BIN)/neuralcollapse train --out runs/demo --force --certify-head $(DEMO)

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_FLAGS)

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(CORE)

test-networks: $(NETWORKS)/.ready
	OMP_NUM_THREADS=1 $(NETWORKS)/bin/python -m pytest -n 2 --dist loadfile -rs $(NETWORKS_TESTS)

# The core with another Python: make test-python PYTHON=python3.12
test-python:
	$(MAKE) test-lowest LOWEST=.venv-$(notdir $(PYTHON)) LOWEST_PINS=constraints.txt

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/.ready
	$(BIN)/python tools/docs_pages.py
	PYTHONPATH=tools SITE=$(SITE) NO_MKDOCS_2_WARNING=1 $(BIN)/$(ENGINE) build --strict --clean
	$(BIN)/python tools/docs_check.py $(SITE)

# The site by both engines, compared page by page. Zensical needs Python 3.11.
docs-both: $(VENV)/.ready
	$(MAKE) docs ENGINE=zensical SITE=build/zensical
	$(MAKE) docs
	$(BIN)/python tools/docs_check.py site build/zensical

# What goes to PyPI, and whether it is fit to: CONTRIBUTING.md has the list of what a release needs.
dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_wheel.py dist/*.whl

# The demo needs less than the tests: their environment serves it too.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what the demo needs into $(VENV): once, about a minute where pip has the packages at hand."
	$(BIN)/python -m pip install $(QUIET) $(PIP_FLAGS) -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what the tests and the documentation need into $(VENV): once, a few minutes."
	$(BIN)/python -m pip install $(QUIET) $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	touch $(VENV)/.demo $@

$(LOWEST)/.ready: pyproject.toml $(LOWEST_PINS)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install $(QUIET) $(PIP_FLAGS) -c $(LOWEST_PINS) \
		-e '.[train,hub]' accelerate hypothesis pytest pytest-xdist transformers
	touch $@

$(NETWORKS)/.ready: pyproject.toml constraints.txt
	test -x $(NETWORKS)/bin/python || $(PYTHON) -m venv $(NETWORKS)
	grep -v '^torch==' constraints.txt > $(NETWORKS)/constraints.txt
	$(NETWORKS)/bin/python -m pip install $(QUIET) $(PIP_FLAGS) -c $(NETWORKS)/constraints.txt $(NETWORKS_PINS) \
		-e '.[train,hub]' accelerate hypothesis pytest pytest-xdist transformers
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(NETWORKS) build dist runs site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
