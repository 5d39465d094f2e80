# Each target is one command of `python3 -m helpers`, which makes .venv first where that is needed.
# Another Python: make course PYTHON=python3.12. Options: make course ARGS="02 --profile smoke".
PYTHON ?= python3
ARGS ?=

.PHONY: course test lab notebooks student book check mutants clean help
.DEFAULT_GOAL := help

course test lab notebooks student book check mutants clean:
	@$(PYTHON) -m helpers $@ $(ARGS)

help:
	@$(PYTHON) -m helpers --help
