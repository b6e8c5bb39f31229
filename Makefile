# make run   sets up everything and runs the main job on real data if there are any, else on the simulated subject
# make test  sets up everything and passes the tests
VENV ?= .venv
OUT ?= runs/first
MODELS ?= mean,class_mean,ridge,regression,ldm,posterior
# processes; 0: two, where there are cores and memory for them
JOBS ?= 0
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Data of real people lie outside the repository; a folder shared/data beside the checkout is used when it is there.
ifneq ($(wildcard ../shared/data),)
export DIGIT69_DATA ?= $(abspath ../shared/data)
endif
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-quick test-browser docs lab report book results readme clean
run: $(READY)
	$(BIN)/digit69 run --data auto --models $(MODELS) --jobs $(JOBS) --out $(OUT) --resume

report: $(READY)
	$(BIN)/digit69 report $(OUT)

test: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash .ci/check

# everything but running notebooks and tests: what to do before a commit
test-quick: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash .ci/check quick

# opens the website and drives the explorer in headless Chromium, as a Voila page and in JupyterLab; installs Chromium and its driver when they are missing and one is root
test-browser: docs
	$(BIN)/pip install --quiet --constraint constraints.txt selenium
	$(BIN)/python tests/browser/drive.py

# a website of all notebooks and modules in _docs, from the repository alone, to be read without a network
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	rm -rf _docs
	mv docs/_build/html _docs
	$(BIN)/python -m pytest tests/test_docs.py

lab: $(READY)
	$(BIN)/jupyter lab --config .ci/lab.py nbs

# runs all notebooks again, or those in NAMES, and keeps what they show; then the README
WORKERS ?= 2
book: $(READY)
	$(BIN)/python .ci/book.py --workers $(WORKERS) $(NAMES)
	$(BIN)/python .ci/readme.py

# nbs/results/NAME.json from the run folder RUN: the source of a table in the book
results: $(READY)
	$(BIN)/python .ci/results.py $(RUN) $(NAME)

# README.md is made from nbs/index.ipynb; .ci/check fails when they are out of step
readme: $(READY)
	$(BIN)/python .ci/readme.py

$(READY): constraints.txt settings.ini setup.py pyproject.toml .ci/setup
	bash .ci/setup $(PYTHON) $(VENV)

clean:
	! bash .ci/made_here $(VENV) || rm -rf $(VENV)
	rm -rf docs/_build docs/api docs/nbs _docs build dist *.egg-info
