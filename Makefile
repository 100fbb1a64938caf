# Every command of the project. `make up` and `make test` are all a new machine needs.

UV ?= uv
RUN = $(UV) run --frozen

.PHONY: lint format docs

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

docs:  ## write the generated reference pages
	$(RUN) python -m scripts.docs
