# `make book` and `make test` are all a reader needs; `make help` lists the rest.

PYTHON  ?= python3
CHAPTER ?= book
VENV    := .venv
PY      := $(VENV)/bin/python
# Node comes with the Python packages: npm and node are looked up in .venv first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Linux: memory once taken is kept for the next tensor. To get it anew costs up to a tenth.
export MALLOC_TRIM_THRESHOLD_ := 1000000000
export MALLOC_MMAP_THRESHOLD_ := 1000000000

# In the order of conftest.py, a file or a notebook after the other.
PYTEST  := $(PY) -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder
# Seconds for a cell: enough for a machine several times slower than ours.
NBVAL   := --nbval book/ --nbval-current-env --nbval-cell-timeout 900
# The same sums on plain vector code: stored numbers must survive it.
OTHER_CPU := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE \
             ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2

.DEFAULT_GOAL := help
.PHONY: help setup book test lab serve run stability bench lint clean distclean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1|/' \
	  | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

# Pages are written anew each time, as Sphinx copies no changed style sheet otherwise.
# A failed build forgets what it has read: a second try must show the warnings again.
book: setup ## build the site into _build/html, warnings are errors
	@echo "==> Building the site into _build/html (some seconds)"
	@rm -rf _build/html
	@$(VENV)/bin/jupyter-book build . -W -n --keep-going -q >/dev/null || { \
	  rm -rf _build/.doctrees; \
	  echo "==> The site did not build: the lines above name the page and the reason."; \
	  exit 1; }
	@echo "==> The site is at $(CURDIR)/_build/html/index.html"
	@echo "    'make serve' shows it in a browser, with search."

test: setup ## package, layout and site tests, and every notebook against its stored output
	@echo "==> All tests, and every cell again: it must print what is stored (some 20 minutes)"
	@$(PYTEST) tests $(NBVAL)

lab: setup ## open the chapters in JupyterLab
	@# Unless trusted, JupyterLab shows the stored heat-maps without their colours.
	@find book -name '*.ipynb' -exec $(PY) -m jupyter trust {} + >/dev/null
	@$(PY) -m jupyter lab --notebook-dir book

serve: setup ## show the built site on this computer
	@$(PY) _ext/serve.py _build/html

run: setup ## run notebooks and store their outputs; CHAPTER=book/01-background for one
	@$(PY) _ext/execute.py $(CHAPTER)

stability: setup ## the notebooks again, as on a much older processor
	@echo "==> Notebooks under another CPU setting (half an hour or more)"
	@$(OTHER_CPU) $(PYTEST) $(NBVAL)

bench: setup ## ours beside the libraries, in seconds, into _build/bench.json
	@$(PY) tests/bench.py --out _build/bench.json

lint: setup ## ruff: rules and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean: ## remove what was built
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis

distclean: clean ## remove what was installed as well
	@rm -rf $(VENV) node_modules tokrl.egg-info

# --- set-up: two stamps, so that a second run costs nothing --------------------------

setup: $(VENV)/.ready node_modules/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "==> '$(PYTHON)' was not found. Install Python 3.10 to 3.13, or name yours:"; \
	  echo "    make PYTHON=python3.12 ..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "==> '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), but Python 3.10 to 3.13 is needed."; \
	  echo "    Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "==> Python packages into $(VENV) (once: 2 to 10 minutes, 1 to 5 GB, mostly PyTorch)"
	@"$(PYTHON)" -m venv $(VENV) || { \
	  echo "==> '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu:"; \
	  echo "    sudo apt install python3-venv    and run make again."; exit 1; }
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[book,test]" || { \
	  echo "==> The Python packages could not be installed. No network, or a full disk?"; \
	  echo "    The lines above say which package; running make again goes on from here."; exit 1; }
	@touch $@

node_modules/.ready: package.json package-lock.json $(VENV)/.ready
	@echo "==> MathJax, Mermaid and fonts into node_modules (once: a few seconds, 180 MB)"
	@npm ci --ignore-scripts --silent || { \
	  echo "==> MathJax, Mermaid and fonts could not be installed. No network?"; \
	  echo "    'npm ci --ignore-scripts' says more; then run make again."; exit 1; }
	@touch $@
