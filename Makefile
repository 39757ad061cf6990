PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install demo test lint notebooks docs site clean
help:
	@echo "make demo     install, train the default (digits), evaluate its grid, print the table"
	@echo "make test     install with test dependencies, run the whole suite"
	@echo "make lint     ruff, mypy and the import contracts"
	@echo "make notebooks   run notebooks/ from top to bottom and keep their outputs; about a quarter of an hour"
	@echo "make docs     write what docs/ takes from the code: configuration.md, the import diagram"
	@echo "make site     README, docs/, notebooks/ and docstrings as a site in build/site/html"
	@echo "make install  the environment alone, in $(VENV)"
	@echo "make clean    remove $(VENV), outputs/, cache/ and build/"

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,cluster,search,text]'
	@touch $@

$(VENV)/.installed-site: pyproject.toml constraints.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python train.py
	$(BIN)/python evaluate.py

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

notebooks: $(VENV)/.installed-dev
	$(BIN)/python -m tools.run_notebooks

docs: $(VENV)/.installed-dev
	$(BIN)/python -m tools.configuration_page
	$(BIN)/python -m tools.import_diagram

site: $(VENV)/.installed-site
	$(BIN)/python -m tools.site

clean:
	rm -rf $(VENV) outputs cache build
