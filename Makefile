VENV ?= .venv
PYTHON ?= python3
TRANSFORMERS ?= 5.20.0
BIN = $(VENV)/bin
PATHS = modeling_qca training hub_card tests examples scripts
DOCUMENTS = README.md docs/annotate.md docs/confidence.md docs/maps.md docs/quickstart.md docs/results/answers_as_text.md docs/results/daquar.md docs/results/facades.md docs/results/rooms.md docs/results/vqa_rad.md docs/results/zoom.md docs/speed.md
CARD = docs/card docs/results/views.json "end to end, from the bilinear scorer" --repo_id you/qca-rooms
ENCODERS = --vision_encoder facebook/dinov2-small --text_encoder sentence-transformers/all-MiniLM-L6-v2
RESULTS = $(BIN)/qca results configuration/recipes/results
PARALLEL = -n auto --maxprocesses 4 --dist worksteal  # each test runs on one thread
WORKERS ?= 2

.PHONY: help demo evidence given test test-slow test-cuda test-transformers test-bare quality style docs

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{ printf "make %-18s %s\n", $$1, $$2 }'

demo: $(VENV)/core  ## install the core, train a tiny model on drawn scenes, show where it looks
	$(BIN)/qca demo

# make evidence ROOMS=... PHOTOS=... CLASSES=... DAQUAR=... VQA_RAD=... FACADES=...: every table of rows; goes on where it stopped
evidence: $(VENV)/ready given data/view_questions data/facade_view_questions  ## train every row of every results table (days on a CPU)
	$(RESULTS)/rooms.yaml --data "$(ROOMS)" --data_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/question_in_vision.yaml --data "$(ROOMS)" --data_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/views.yaml --data data/view_questions --data_options '{images: data/views/images}' \
		--validation_data "$(ROOMS)" --validation_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/views_without_maps.yaml --data data/view_questions --data_options '{images: data/views/images}' \
		--validation_data "$(ROOMS)" --validation_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/ablations.yaml --data "$(ROOMS)" --data_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/rooms_head.yaml --data "$(ROOMS)" --data_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/rooms_spatial.yaml --data "$(ROOMS)" --data_options '{images: $(PHOTOS)}' $(ENCODERS)
	$(RESULTS)/daquar_random.yaml --data "$(DAQUAR)" $(ENCODERS)
	$(RESULTS)/daquar_head.yaml --data "$(DAQUAR)" $(ENCODERS)
	$(RESULTS)/daquar_scenes.yaml --data "$(DAQUAR)" $(ENCODERS)
	$(RESULTS)/vqa_rad.yaml --data "$(VQA_RAD)" $(ENCODERS)
	$(RESULTS)/vqa_rad_images.yaml --data "$(VQA_RAD)" $(ENCODERS)
	$(RESULTS)/vqa_rad_levers.yaml --data "$(VQA_RAD)" $(ENCODERS)
	$(RESULTS)/facades.yaml --data data/facade_questions --data_options '{images: $(FACADES)/images}' $(ENCODERS)
	$(RESULTS)/facades_448.yaml --data data/facade_questions --data_options '{images: $(FACADES)/images}' $(ENCODERS)
	$(RESULTS)/facades_spatial.yaml --data data/facade_questions --data_options '{images: $(FACADES)/images}' $(ENCODERS)
	$(RESULTS)/facades_views.yaml --data data/facade_view_questions --data_options '{images: data/facade_views/images}' \
		--validation_data data/facade_questions --validation_options '{images: $(FACADES)/images}' $(ENCODERS)

given:
	$(foreach name,ROOMS PHOTOS CLASSES DAQUAR VQA_RAD FACADES,$(if $($(name)),,$(error $(name)=... is missing, see docs/results/index.md)))

data/views: | $(VENV)/ready given
	$(BIN)/qca make-views "$(PHOTOS)" "$(ROOMS)/labels" $@

data/view_questions: | data/views
	$(BIN)/qca make-questions data/views/images data/views/labels "$(CLASSES)" $@ --questions-per-kind 4 \
		--like "$(ROOMS)/train.csv"

data/facade_questions: | $(VENV)/ready given
	$(BIN)/qca make-questions "$(FACADES)/images" "$(FACADES)/labels" "$(FACADES)/classes.txt" $@ \
		--questions-per-kind 2 --image-table "$(FACADES)/images.csv" --group-by sequence

data/facade_views: | $(VENV)/ready given
	$(BIN)/qca make-views "$(FACADES)/images" "$(FACADES)/labels" $@ --count 2 --image-table "$(FACADES)/images.csv"

data/facade_view_questions: | data/facade_views data/facade_questions
	$(BIN)/qca make-questions data/facade_views/images data/facade_views/labels "$(FACADES)/classes.txt" $@ \
		--questions-per-kind 2 --like data/facade_questions/train.csv --image-table data/facade_views/images.csv \
		--group-by sequence

test: $(VENV)/ready  ## run the default tests (minutes)
	$(BIN)/python -m pytest -q $(PARALLEL)

test-slow: $(VENV)/ready  ## run the slow tests with WORKERS processes
	$(BIN)/python -m pytest -q -m slow -n $(WORKERS) --dist worksteal

test-cuda: $(VENV)/ready  ## run the tests that need a GPU
	QCA_TEST_CUDA=1 $(BIN)/python -m pytest -q tests/training/fitting/test_cuda.py

test-transformers:  ## run the default tests on TRANSFORMERS=5.20.0, in an environment of their own
	$(PYTHON) -m venv $(VENV)-$(TRANSFORMERS)
	grep -v "^transformers==" constraints.txt > $(VENV)-$(TRANSFORMERS)/constraints.txt
	$(VENV)-$(TRANSFORMERS)/bin/python -m pip install -q torch -c constraints.txt
	$(VENV)-$(TRANSFORMERS)/bin/python -m pip install -q -c $(VENV)-$(TRANSFORMERS)/constraints.txt \
		transformers==$(TRANSFORMERS) -e ".[dev]"
	$(VENV)-$(TRANSFORMERS)/bin/python -m pytest -q $(PARALLEL)

test-bare:  ## run the default tests on a copy of the checkout, in a new HOME without data of nltk
	folder=$$(mktemp -d) && mkdir $$folder/home $$folder/checkout \
		&& git ls-files -coz --exclude-standard | tar --null -T - -cf - | tar -xf - -C $$folder/checkout \
		&& env -u VIRTUAL_ENV HOME=$$folder/home NLTK_DATA=/nowhere WNSEARCHDIR=/nowhere \
			$(MAKE) -C $$folder/checkout test VENV=.venv && rm -rf $$folder

quality: $(VENV)/ready  ## check lint, format, types, spelling, language and generated documents
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/python scripts/check_language.py README.md
	$(BIN)/python scripts/render_documents.py $(DOCUMENTS) --check
	$(BIN)/python scripts/reference.py --check
	$(BIN)/python scripts/compatibility.py --check
	$(BIN)/python -m modeling_qca.hub_card.row_card $(CARD) --check

style: $(VENV)/ready  ## format the code and render the generated documents
	$(BIN)/python scripts/render_documents.py $(DOCUMENTS)
	$(BIN)/python scripts/reference.py
	$(BIN)/python -m modeling_qca.hub_card.row_card $(CARD)
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

docs: $(VENV)/docs  ## build the site in site/ and check its links
	$(BIN)/mkdocs build --strict

$(VENV)/core: pyproject.toml constraints.txt
	@echo "Installing the core into $(VENV): downloads about 370 MB with a CPU build of torch, takes 1.6 GB on disk and"
	@echo "one to two minutes on a fast connection. On Linux, PyPI has the CUDA build of torch, which is several GB;"
	@echo "make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu installs the CPU build."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/ready: $(VENV)/core
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@
