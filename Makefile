# Every target does its own set-up: a virtual environment with the locked packages, made on first use.
PYTHON ?= python3
VENV   ?= .venv
SEED   ?= 0
ROOT   ?= var/demo
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Runs of this checkout stay in this checkout, so that `make serve` shows what `make demo` did.
export PREFECT_HOME ?= $(CURDIR)/var/prefect
$(shell mkdir -p "$(PREFECT_HOME)")

.PHONY: help demo test test-all browser check bench serve lock clean
help:
	@echo "make demo [SEED=n]  render an archive and run the whole chain on it, about 6 minutes"
	@echo "make test           run the test suite, 10 to 20 minutes"
	@echo "make test-all       with what takes longest: two nodes, PostgreSQL, kills on object storage; about 20 minutes"
	@echo "make check          format, lint and type checks"
	@echo "make bench          measure against named baselines, about 20 minutes; or: python -m bench NAME, with --help"
	@echo "make serve          Prefect server, worker and MLflow on this machine, with the deployments of prefect.yaml"
	@echo "make lock           write constraints.txt anew from what pyproject.toml allows"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Reelmill needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "installing python3-venv"; $$(test "$$(id -u)" = 0 || echo sudo) sh -c 'apt-get update -q && apt-get install -yq python3-venv'; } \
	  || { echo "python3-venv is missing: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[assets,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/reelmill demo --root $(ROOT) --seed $(SEED)

# The tests of the report page open it in Debian's Chromium; where there is none to be had they skip, and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { echo "installing chromium"; $$(test "$$(id -u)" = 0 || echo sudo) sh -c 'apt-get update -q && apt-get install -yq chromium'; } \
	  || echo "no chromium can be installed: the tests of the report page in a browser are skipped"

test: $(READY) browser
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not long"

test-all: $(READY) browser
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench

serve: $(READY)
	$(BIN)/reelmill serve --root $(ROOT)

lock:
	rm -rf var/lock && $(PYTHON) -m venv var/lock
	var/lock/bin/pip install -q -e '.[assets,dev]'
	var/lock/bin/pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf var $(VENV) *.egg-info
