# make run    a fresh clone to an executed main.ipynb under build/
# make test   lint, unit tests and strict re-execution of every notebook
# make campaign   200 kills and 1,000 mutated inputs: half an hour
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.requirements.stamp
# Two processes of one thread each, whole files to either, so that notebooks run from top to bottom.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: run test lint unit notebooks campaign data colab submission experiments lock clean

run: data
	mkdir -p build
	$(BIN)/jupyter nbconvert --execute --to notebook --output-dir build main.ipynb
	ln -sfn ../assets build/assets
	$(BIN)/jupyter nbconvert --to html --template page --TemplateExporter.extra_template_basedirs=assets --embed-images --output-dir build build/main.ipynb
	@echo "Open build/main.html"

test: lint unit notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: $(STAMP)
	$(PYTEST)

notebooks: data
	$(PYTEST) --nbval --nbval-cell-timeout=600 -p no:cacheprovider main.ipynb notebooks

campaign: $(STAMP)
	$(BIN)/python -m tests.campaign 200 1000

data: $(STAMP)
	$(BIN)/python -m src road data
	$(BIN)/python -m src defects data
	$(BIN)/python -m src sets data
	$(BIN)/python -m src series data

$(STAMP): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

colab: $(STAMP)  # make colab REPOSITORY=https://github.com/OWNER/NAME
	$(BIN)/python notebooks/set_repository.py "$(REPOSITORY)"

experiments: $(STAMP)
	$(BIN)/python -m src experiments

submission: data
	$(BIN)/python -m src submission

lock: $(STAMP)
	$(BIN)/pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf build runs data/mini
