# `make demo` and `make test` do all their own set-up: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
DOCS_STAMP := .venv/.installed-docs

.PHONY: demo test lint slow docs clean

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up .venv: PyTorch and other packages, some minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	@echo "Installing what the tests need."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(DEV_STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $(DOCS_STAMP)

demo: $(STAMP)
	$(BIN)/metaformer demo

test: $(DEV_STAMP)
	$(BIN)/python -m pytest

slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, in site/. To read it: .venv/bin/mkdocs serve, or open site/index.html.
docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo-report site
