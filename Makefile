# Each target sets up .venv by itself, from the lock in requirements.txt, when it is missing or older than the lock.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONPATH
# Packages come without bytecode. Where Python may not keep what it compiles, it does so at every stage's start.
unexport PYTHONDONTWRITEBYTECODE

repro: .venv/ready  ## run what has changed since the last run (default)
	dvc repro

quick: .venv/ready  ## run every stage at small size, in a copy: two minutes
	@python -m tools.quick

setup: .venv/ready  ## make .venv and nothing else

report: .venv/ready  ## bring the report up to date and say where its page is
	dvc repro report
	@echo "the page: $(CURDIR)/data/report.html"

test: .venv/ready  ## run the tests
	python -m pytest -n 2 --dist worksteal

lint: .venv/ready  ## check style and formatting
	ruff check
	ruff format --check

BASE ?= main
pr-report: .venv/ready  ## what this branch changes against BASE=main, as Markdown
	@python -m tools.pr_report "$(BASE)"

# Built from a copy: genprior/ is a dependency of stages, and no model belongs into it.
wheel: .venv/ready  ## build dist/genprior-*.whl, the library with the trained priors
	@ls data/models/*.safetensors > /dev/null 2>&1 || { echo "error: data/models has no priors; make repro trains them" >&2; exit 1; }
	rm -rf build && mkdir -p build/genprior/models
	cp pyproject.toml README.md LICENSE build
	cp genprior/*.py build/genprior
	cp data/models/*.safetensors build/genprior/models
	python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./build
	rm -r build

lock:  ## resolve pyproject.toml anew into requirements.txt
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --editable '.[pipeline,dev]'
	.venv/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > requirements.txt
	touch .venv/ready

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set one with make PYTHON=/path/to/python")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --disable-pip-version-check --quiet --no-compile --requirement requirements.txt
	.venv/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: repro quick setup report test lint pr-report wheel lock help
