# Everything a fresh machine needs: `make demo`, `make test`, `make play`. The virtual environment sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo play test lint types imports unit wheel-test format clean

demo: $(STAMP)  ## build a world, remember it, walk away, come back: out/demo
	$(BIN)/decmem demo --out out/demo

play: $(STAMP)  ## open the viewer on the bundled world
	$(BIN)/decmem play

test: $(STAMP) lint types imports unit  ## everything CI runs

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -e ".[play,rl,train,dev]"
	touch $@

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The top-level folders install as sub-packages; mypy and the import linter see them through links.
.PHONY: links
links:
	rm -rf .typecheck && mkdir -p .typecheck/decmem_env
	cd .typecheck/decmem_env && ln -s ../../decmem_env/* . && ln -s ../../model ../../kernels ../../trainers ../../agents .

types: links
	$(BIN)/mypy --config-file pyproject.toml .typecheck/decmem_env

imports: links
	cd .typecheck && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache

unit:
	$(BIN)/python -m pytest

wheel-test: $(STAMP)  ## build the wheel, install it in an empty environment, run the quick start
	bash tests/wheel_test.sh

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out build dist .typecheck
