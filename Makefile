# Everything a newcomer needs: `make quickstart`. Everything a developer needs: `make check test`.
PYTHON ?= python3
VENV := .venv/bin
# The official clients, in an environment where Finery cannot be imported.
SDK := .venv-sdk/bin
# Azure's own scoring host, beside which ours is held.
INFERENCE := .venv-inference/bin
export OMP_WAIT_POLICY = PASSIVE
# Trust what the machine trusts: many networks have a certificate authority of their own.
export UV_SYSTEM_CERTS = 1

.PHONY: setup quickstart quickstart-vqa test test-all test-gpu check format bench coverage lock clean

setup: .venv/.ready .venv-sdk/.ready

# torch comes from pip, which takes a CPU wheel that lies on the machine; uv does the rest.
.venv/.ready: pyproject.toml constraints.txt
	@echo "Setting up: a few minutes and a few gigabytes, the first time only."
	@echo "  1 of 3: PyTorch, the largest piece (some minutes where it has to be downloaded)"
	@test -x $(VENV)/python || $(PYTHON) -m venv .venv
	@test -x $(VENV)/uv || $(VENV)/python -m pip install --quiet uv
	@$(VENV)/python -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
		|| $(VENV)/python -m pip install $$(test -t 2 || echo --quiet) torch==2.13.0
	@echo "  2 of 3: Finery and what it needs (.venv)"
	@$(VENV)/uv pip install --quiet --python $(VENV)/python --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/python -m compileall -q -j 0 .venv/lib > /dev/null 2>&1 || true
	@touch $@

.venv-sdk/.ready: requirements-sdk.txt .venv/.ready
	@echo "  3 of 3: the official clients, where Finery cannot be imported (.venv-sdk)"
	@test -x $(SDK)/python || $(PYTHON) -m venv .venv-sdk
	@$(VENV)/uv pip install --quiet --python $(SDK)/python --requirement requirements-sdk.txt
	@$(SDK)/python -m compileall -q -j 0 .venv-sdk/lib > /dev/null 2>&1 || true
	@touch $@
	@echo "  ready"

.venv-inference/.ready: requirements-inference.txt .venv/.ready
	@echo "Setting up Azure's own scoring host, to hold ours beside (.venv-inference)"
	@test -x $(INFERENCE)/python || $(PYTHON) -m venv .venv-inference
	@$(VENV)/uv pip install --quiet --python $(INFERENCE)/python --requirement requirements-inference.txt
	@touch $@

quickstart: setup
	@$(VENV)/python scripts/quickstart.py

quickstart-vqa: setup
	@$(VENV)/python scripts/quickstart_vqa.py

test: setup .venv-inference/.ready
	$(SDK)/python -m pytest -q -c tests/sdk/pytest.ini -m "not slow" tests/sdk
	$(VENV)/python -m pytest -q -m "not slow and not gpu"

test-all: setup .venv-inference/.ready
	$(SDK)/python -m pytest -q -c tests/sdk/pytest.ini tests/sdk
	$(VENV)/python -m pytest -q -m "not gpu"

test-gpu: setup
	$(VENV)/python -m pytest -q -m gpu

check: setup
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports

format: setup
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

bench: setup .venv-inference/.ready
	$(VENV)/python bench/run.py

coverage: setup
	$(SDK)/python scripts/coverage.py > docs/coverage.md.part
	@mv docs/coverage.md.part docs/coverage.md

# The versions that the tests have passed with; torch and Finery itself are left out on purpose.
lock: setup
	$(VENV)/uv pip freeze --python $(VENV)/python --exclude-editable | grep -v '^torch==' > constraints.txt

clean:
	rm -rf .quickstart .quickstart-vqa .mypy_cache .ruff_cache .pytest_cache
