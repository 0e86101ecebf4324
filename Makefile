# make demo   set up, then the main job on the embedded songs
# make test   set up, then lint, types and all tests, PROCESSES side by side
PYTHON ?= python3
PROCESSES ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/seqagg benchmark

# Neither waits for the other, and both must pass.
test: $(READY)
	@$(MAKE) --no-print-directory lint & lint=$$!; \
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal; tests=$$?; \
	wait $$lint && exit $$tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Made again only when what it was made from has changed. Python compiles what it imports, of which
# there is far less than all.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test,tunes,plots,skops,ray,fuzz]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
