# Each target sets up .venv by itself, from the lock in requirements.txt, when it is missing or older than the lock.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONPATH
# Packages come without bytecode. Where Python may not keep what it compiles, it does so at every stage's start.
unexport PYTHONDONTWRITEBYTECODE

repro: .venv/ready  ## run what has changed since the last run (default)
	dvc repro

setup: .venv/ready  ## make .venv and nothing else

report: .venv/ready  ## write the last run as one HTML page, report.html
	python -m tools.page

test: .venv/ready  ## run the tests
	python -m pytest

lint: .venv/ready  ## check style and formatting
	ruff check
	ruff format --check

BASE ?= main
pr-report: .venv/ready  ## what this branch changes against BASE=main, as Markdown
	@python -m tools.pr_report "$(BASE)"

lock:  ## resolve pyproject.toml anew into requirements.txt
	$(PYTHON) -m venv --clear .venv
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > .venv/wanted.txt
	.venv/bin/pip install -r .venv/wanted.txt
	.venv/bin/pip freeze | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > requirements.txt
	touch .venv/ready

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set one with make PYTHON=/path/to/python")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --disable-pip-version-check --quiet --no-compile --requirement requirements.txt
	touch $@

.PHONY: repro setup report test lint pr-report lock help
