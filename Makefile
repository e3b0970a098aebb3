# Everything one does with edged, from a fresh clone. `make` alone lists it.
# A step makes sure of what it needs: the virtual environment (.venv) and, where it can, Debian's packages.

python := .venv/bin/python
# The choice of interpreter, e.g. make setup PYTHON=python3.12
export PYTHON
# Arguments for a step that takes some, e.g. make test ARGS='-k outbox' or make bench ARGS=--help
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-to-run setup-dev setup-to-test demo run test lint types docs bench chaos soak fuzz clean
# Steps share .venv: one after the other, also with make -j.
.NOTPARALLEL:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv: edged, llama.cpp and the starter model (3 to 10 minutes the first time)
	@deploy/setup.sh daemon

setup-to-run:
	@deploy/setup.sh daemon mosquitto mosquitto-clients

setup-dev:
	@deploy/setup.sh daemon,dev

setup-to-test:
	@deploy/setup.sh daemon,dev mosquitto mosquitto-clients

demo: setup-to-run ## start a broker and the daemon, ask a question, show the answer, stop everything
	@$(python) -m deploy.demo

# bash -m gives run.py the terminal: Ctrl-C reaches it and not make, which would call the ordinary end an error.
run: setup-to-run ## start a broker and the daemon, and keep them running until Ctrl-C
	@bash -mc '$(python) -m deploy.run .run; exit $$?'

test: setup-to-test ## all checks and all tests, as CI runs them; ARGS='-k outbox' passes arguments to pytest
	@deploy/packages.sh --optional systemd systemd-container python3-venv shellcheck
	@$(MAKE) --no-print-directory lint types
	$(python) -m pytest $(ARGS)

lint: setup-dev ## style and the arrows between the rooms
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	.venv/bin/lint-imports

types: setup-dev ## mypy, strict
	$(python) -m mypy

docs: setup ## write the generated documents anew: docs/schema, docs/configuration.md
	$(python) -m edged.wire.schema docs/schema
	$(python) -m edged.config docs/configuration.md

bench: setup-to-test ## measure all scenarios of benchmarks/, half an hour and more; e.g. ARGS='--quick --only mixed cancel'
	$(python) benchmarks/serving.py $(ARGS)

chaos: setup-to-test ## break the real thing 100 times during 1,000 requests, and count; e.g. ARGS='--seed 8 --only cut freeze'
	@$(python) -m tests.chaos.storm $(ARGS)

soak: setup-dev ## run simulated worlds for a minute; e.g. ARGS='--seconds 3600', or ARGS='--seed 7' for one of them
	@$(python) -m tests.simulation $(ARGS)

fuzz: setup-to-test ## publish and decode nonsense for a minute; e.g. ARGS='--seconds 3600 --only daemon'
	@$(python) -m tests.fuzz $(ARGS)

clean: ## remove what was built or written here, .venv included
	rm -rf .venv .run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
