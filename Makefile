# make demo       the built-in testbed: collect, train both methods, evaluate, probe, and write a page about it
# make science    the testbed's numbers in RESULTS.md, hours; continues what it finds; SCIENCE=core for the first two hours of it
# make pages      the paper's tables and figures in miniature, 100 minutes: all of sweeps/small, then runs/small/report
# make lqv        the paper's benchmark from scratch, hours: LQV_SET='videos=FOLDER random=40', LQV_ONLY='walker_walk'
# make test       the test suite; test-full adds the longer checks
# make lint type  what continuous integration checks besides; format rewrites the files
# make docs       the documentation as a website, site/index.html
# make doctor     what this machine can do
# make clean      removes the virtual environment and all caches, but no run and no dataset
#
# Each installs what it needs into VENV first. PYTEST_ARGS reaches pytest: make test PYTEST_ARGS='-x tests/run/test_resume.py'

PYTHON ?= python3
VENV ?= .venv
# Two processes, a test file in one of them, in the order of their names: half the time on two cores, and no long file last.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
DEMO := runs/demo
SCIENCE ?= core rest regime penalty
PAGES := table1 table2 table4 figures
ABLATIONS := semopo se_rs_drp se_rs offline_dv2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RENDER := $(BIN)/python -c "from semopo_tf.envs.rendering import choose_backend; print('images are rendered with', choose_backend())"

# System packages: root on Debian or Ubuntu gets them installed, everybody else the line to run.
define system
{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; } || \
{ echo "missing system packages; run this and then make again: sudo apt-get install $(1)"; exit 1; }
endef

.PHONY: demo science pages lqv test test-full format lint type docs doctor clean
.DELETE_ON_ERROR:

test: $(VENV)/renders
	$(BIN)/python -m pytest -m "not full" $(PYTEST_ARGS)

test-full: $(VENV)/renders
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Continues what it finds, so an interrupted demo goes on. To start over: rm -r runs/demo. Needs no simulator and no rendering.
demo: $(VENV)/installed
	$(BIN)/python -m semopo_tf.sweep --file sweeps/demo.yaml
	$(BIN)/python -m semopo_tf.report $(DEMO)/semopo/run $(DEMO)/offline_dv2/run \
	  --data $(DEMO)/data/random $(DEMO)/data/uniform $(DEMO)/data/controller --out $(DEMO)/report --title "The testbed's demo"

science: $(VENV)/installed
	for part in $(filter core rest,$(SCIENCE)); do \
	  $(BIN)/python -m semopo_tf.sweep --file sweeps/science.yaml --only $$part || exit $$?; done
	for page in $(filter regime penalty,$(SCIENCE)); do \
	  $(BIN)/python -m semopo_tf.sweep --file sweeps/$$page.yaml || exit $$?; done
	$(BIN)/python -m semopo_tf.summary --file sweeps/science.yaml sweeps/regime.yaml sweeps/penalty.yaml --page RESULTS.md

# The miniature of sweeps/paper, with the tables that can be filled on two CPU cores. Continues what it finds.
pages: $(VENV)/renders
	for page in $(PAGES); do $(BIN)/python -m semopo_tf.sweep --file sweeps/small/$$page.yaml || exit $$?; done
	$(BIN)/python -m semopo_tf.report runs/table1_small/*/*/seed=* runs/table4_small/*/*/seed=* \
	  --out runs/small/report --title "The paper's pages in miniature"
	$(BIN)/python -m semopo_tf.report $(foreach method,$(ABLATIONS),runs/table1_small/*/$(method)/seed=*) \
	  --out runs/small/ablations --title "The ablations in miniature"

# Every cell of LQV-D4RL, with the behaviours that play it. Continues what it finds. EPISODES=40 for small ones.
lqv: $(VENV)/renders
	$(BIN)/python -m semopo_tf.sweep --file sweeps/lqv_d4rl.yaml $(if $(PROCESSES),--processes $(PROCESSES)) \
	  $(if $(LQV_ONLY),--only $(LQV_ONLY)) \
	  --set $(if $(EPISODES),random=$(EPISODES) medrep=$(EPISODES) medium=$(EPISODES)) $(LQV_SET)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/installed
	$(BIN)/mypy

# Needs no network once the packages are there; the website needs none either.
docs: $(VENV)/documents
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

doctor: $(VENV)/installed
	$(BIN)/python -m semopo_tf.doctor

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without build isolation, so that the tools that build gym and this package are pinned too.
$(VENV)/installed: setup.py constraints.txt
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || $(call system,python3-venv)
	$(PYTHON) -m venv $(VENV)
	@echo "installing the tested packages, about two gigabytes"
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/documents: $(VENV)/installed
	$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@

$(VENV)/renders: $(VENV)/installed
	@$(RENDER) 2>/dev/null || { $(call system,libegl1 libgl1 libosmesa6); $(RENDER); }
	@touch $@
