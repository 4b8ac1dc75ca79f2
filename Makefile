# `make demo` and `make test` are all a newcomer needs; both set up .venv first if that is not done.
# PYTHON is what .venv is made from; if it has Detectron2, that one is used and not installed again.
PYTHON ?= python3
READY := .venv/.ready

.PHONY: help setup demo test lint bench clean distclean

help:
	@echo "make demo       train a small student with and without its teacher; a table and a picture (about 10 minutes)"
	@echo "make test       run the tests"
	@echo "make lint       run ruff"
	@echo "make bench      measure what distillation costs on this CPU; a table and a picture (about two minutes)"
	@echo "make setup      only make .venv; PYTHON=/path/to/python makes it from a Python that has Detectron2"
	@echo "make clean      remove output/demo, build leftovers and caches"
	@echo "make distclean  also remove .venv and datasets/demo"

setup: $(READY)

demo: $(READY)
	.venv/bin/python -m d2kd.tools.demo

# Networks this small gain nothing from threads, and lose much where cores are shared.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -q

lint: $(READY)
	.venv/bin/python -m ruff check

bench: $(READY)
	.venv/bin/python -m d2kd.tools.benchmark --config-file configs/demo/distill.py train.device=cpu \
		--sizes 128 --boxes 0 20 500 --batch 4 --real-size fgd pgd --warm-up 1 --minutes 1.6 \
		--output output/bench

# The stamp holds the checkout's path: a .venv that was moved, or whose Python is gone, is set up again.
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
