# Two commands do all their own set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# A process per core, each with one thread: threads of two processes on one core only wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

BENCHMARKS := pgd auto_attack minimum_norm black_box_scores decision transfer attack_bench diagnose corruptions augmix coverage fuzz \
	fuzz_retrain dp_step dp_mnist dp_audit accounting suppression membership scan encryption signing obfuscation model_inversion \
	attribute_inference privacy_defences gradient_inversion side_effects study

.PHONY: demo test test-all lint types docs bench clean

demo: $(VENV)/.run  ## train a small CNN on handwritten digits, assess it, write report/index.html
	$(BIN)/python examples/digits/train.py
	$(BIN)/hauberk assess examples/digits/plan.toml --output report --fail-on never

test: $(VENV)/.dev lint types docs  ## lint, strict types, documentation, the default tests
	$(TEST) -m "not slow" --durations 10

test-all: $(VENV)/.dev lint types docs  ## the same with the slow tests
	$(TEST) --durations 20

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

bench: .bench-peers/.installed  ## every benchmark beside its peers; results go to benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) .bench-peers report site .mypy_cache .ruff_cache .pytest_cache

# Installing the developer's set also satisfies the user's, so neither command ever installs twice.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d was found; hauberk needs 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d was found; hauberk needs 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.run

.bench-peers/.installed: $(VENV)/.dev benchmarks/peers.txt
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --target .bench-peers --requirement benchmarks/peers.txt
	touch $@
