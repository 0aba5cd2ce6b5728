# make quickstart: from a fresh clone to a trained network and a report with pictures.
# make test, make lint, make faults, make soak, make bench, make gpu, make scale, make clean.
# Variables: VENV, DATA, OUTPUT, ARGS.
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
DATA ?= datasets
OUTPUT ?= output/quickstart
# Options of the generator, and KEY VALUE pairs for train_net.py.
STREET ?= --train 400 --val 60
ARGS ?=
CONFIG ?= configs/street/quickstart.yaml
RUN = $(PYTHON) -W ignore

.PHONY: quickstart venv test lint faults soak bench gpu scale clean
quickstart: $(OUTPUT)/report.md
	@echo "Done: see $(OUTPUT)/report.md, predictions.png, pseudo_labels.png, curves.png"
	@echo "Curves: $(VENV)/bin/tensorboard --logdir $(OUTPUT)"

venv: $(VENV)/.complete
$(VENV)/.complete: setup.py tools/setup_env.sh tools/requirements-detectron2.txt
	tools/setup_env.sh $(VENV)
	touch $@

$(DATA)/street/street.json: | venv
	$(RUN) -m mtfixmatch.street --root $(DATA)/street $(STREET) --workers 2

# An interrupted training resumes from its last checkpoint.
$(OUTPUT)/report.md: $(DATA)/street/street.json
	$(RUN) projects/train_net.py --config-file $(CONFIG) --resume \
	    DATASETS.ROOT $(DATA) OUTPUT_DIR $(OUTPUT) $(ARGS)

test: venv
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses logical --dist loadfile

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Kills trainings and single ranks, breaks writes and inputs, corrupts steps, hundreds of times.
faults: venv
	$(RUN) -m tools.faults

# Trains twenty thousand tiny steps and checks that memory and open files do not grow.
soak: venv
	$(RUN) -m tools.soak

# How cost grows with images, labels, tasks, image size and processes, see docs/scale.md.
scale: venv
	$(RUN) -m tools.scale output/scale

bench: $(DATA)/street/street.json
	$(RUN) -m tools.bench DATASETS.ROOT $(DATA)

# Checks and measures a training on a GPU; without one, a line says that it is skipped.
gpu: venv
	$(RUN) -m tools.gpu $(ARGS)

clean:
	rm -rf $(VENV) $(OUTPUT)
