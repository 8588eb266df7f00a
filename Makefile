# Two commands for a fresh machine: `make demo` and `make test`. Both build .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format docs pictures parity study venv clean

demo: venv
	$(BIN)/medprobe demo

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compare every encoder with its reference and write the table that docs/encoders.md shows.
parity: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m parity --parity-table docs/parity.md

# Run studies/mini.toml on the images in DATA and write the table and figure that docs/study.md shows.
DATA ?= ../shared/data
study: venv
	$(BIN)/medprobe study run mini --data-root $(DATA)
	$(BIN)/python docs/study_example.py medprobe-mini

# Write the pages that repeat the code and build the site, which no broken link or missing page survives.
docs: venv
	$(BIN)/python docs/reference.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --builder html docs docs/_build

# Draw the pictures of the README anew, from real runs.
pictures: demo
	$(BIN)/python docs/pictures.py medprobe-demo

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
