# A newcomer needs `make demo` and `make test` only; both set up .venv first.
# .venv is made from PYTHON. If PYTHON has Detectron2, .venv uses it and installs no other.
PYTHON ?= python3
READY := .venv/.ready

.PHONY: help setup demo test lint wheel-test notebooks docs links bench gpu clean distclean

help:
	@echo "make demo       train a small student with and without its teacher; a table and a picture (about 10 minutes)"
	@echo "make test       run the tests"
	@echo "make lint       check style (ruff), layers of the package (import-linter) and types (mypy)"
	@echo "make wheel-test build a wheel, install it into a fresh environment and run it there"
	@echo "make docs       build the documentation as a web site, docs/_build/html/index.html"
	@echo "make links      check that the links of the documentation to other sites work; needs the internet"
	@echo "make notebooks  run the notebooks with a few steps (about three minutes)"
	@echo "make bench      measure what distillation costs on this CPU; a table and a picture (about two minutes)"
	@echo "make gpu        run and measure all that needs a GPU, in under nine minutes; docs/performance_gpu.md"
	@echo "make setup      only make .venv; PYTHON=/path/to/python takes the Detectron2 of that Python"
	@echo "make clean      remove output/demo, build leftovers and caches"
	@echo "make distclean  also remove .venv and datasets/demo"

setup: $(READY)

demo: $(READY)
	.venv/bin/python -m d2kd demo

# The networks of the tests are small: threads gain nothing, and cost much on busy cores.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -q

lint: $(READY)
	.venv/bin/python -m ruff check
	.venv/bin/lint-imports
	.venv/bin/python -m mypy

# `make test` runs this, too.
wheel-test: $(READY)
	.venv/bin/python -m pytest -q tests/test_wheel.py

docs: $(READY)
	.venv/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html

links: $(READY)
	.venv/bin/python -m sphinx -b linkcheck docs docs/_build/links

notebooks: $(READY)
	.venv/bin/python -m pytest -q -m slow tests/test_notebooks.py

bench: $(READY)
	.venv/bin/python -m d2kd benchmark --config-file configs/demo/distill.py train.device=cpu \
		--sizes 128 --boxes 0 20 500 --batch 4 --real-size fgd pgd --warm-up 1 --minutes 1.6 \
		--output output/bench

# It goes on where it stopped; GPU=--fresh starts again. Without a GPU, it says so.
gpu: $(READY)
	.venv/bin/python -m d2kd.tools.gpu --output docs $(GPU)

# The stamp holds the path of the checkout. If .venv was moved, or its Python is gone, it is made again.
ifneq ($(shell test -x .venv/bin/python && cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): setup.py tools/bootstrap.py
	@"$(PYTHON)" tools/bootstrap.py

clean:
	rm -rf output/demo build dist d2kd.egg-info .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv datasets/demo
