# Every command of the project. `make up` and `make test` are all a new machine needs.

UV ?= scripts/uv
RUN = $(UV) run --frozen

# Some images set it; every process would then compile all it imports anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up demo sync test lint format bench docs

up:  ## install what is missing and run everything in the foreground: `make up`, `make up PORT=9000`
	@$(UV) sync --frozen --no-dev --inexact
	@exec .venv/bin/sinas up $(if $(PORT),--port $(PORT)) $(ARGS)

demo:  ## start, apply the example, chat with its agent, and leave the server running: `make demo`, `make demo PORT=9000`
	@$(UV) sync --frozen --no-dev --inexact
	@$(if $(PORT),PORT=$(PORT)) scripts/demo

sync:  ## install everything that development needs
	$(UV) sync --frozen

test: sync  ## every test: `make test`, `make test ARGS="-k login"`
	$(RUN) pytest -n 2 --dist worksteal $(ARGS)

lint:  ## everything that is checked without running the product
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python -m scripts.lint
	$(RUN) python -m scripts.docs --check

format:  ## mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench:  ## how fast it is, as ratios against references in the same run: `make bench`, `make bench ARGS="call --json out.json"`
	$(RUN) python -m bench $(ARGS)

docs:  ## write the generated reference pages
	$(RUN) python -m scripts.docs
