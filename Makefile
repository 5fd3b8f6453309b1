# Two commands on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
JOBS ?= 2

.PHONY: demo test e2e reliability lint sbom audit benchmark benchmark-gpu clean help

help:
	@echo "make demo   install, make travelling heads, harmonize them, print where the reports are"
	@echo "make test   install and run the tests"
	@echo "make e2e    containers, clusters and hosts, as far as this machine allows; names what it skips"
	@echo "make reliability   every night: bad input, bad machines, kills, hostile files, fuzzing; about two hours (PARTS=... runs some)"
	@echo "make sbom   CycloneDX list of the locked libraries, into build/sbom.json"
	@echo "make audit  ask pip-audit for known weaknesses of the locked libraries; needs the network"
	@echo "make lint   ruff, mypy and the import contracts"
	@echo "make benchmark   all figures anew (benchmarks/README.md)"
	@echo "make benchmark-gpu   trained methods with the settings of their papers; wants a GPU"

# torch first and by exact version (constraints.txt says why); then everything else.
$(VENV)/.base: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bidsharm needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lint]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/bidsharm-simulate $(DEMO)/heads --subjects 2 --scanners 2 --force
	$(BIN)/bidsharm $(DEMO)/heads $(DEMO)/harmonized participant --harmonizer nyul --site session --force
	$(BIN)/bidsharm $(DEMO)/heads $(DEMO)/harmonized group
	@echo
	@echo "Open these in a browser:"
	@ls $(CURDIR)/$(DEMO)/harmonized/*.html

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

# STAGES="slurm image" runs some of them; tests/e2e/run.py says what each needs.
e2e: $(VENV)/.test
	$(BIN)/python tests/e2e/run.py $(STAGES)

# What is too long for the tests; docs/reliability.md shows the last results.
reliability: $(VENV)/.test
	$(BIN)/python tests/reliability/run.py $(PARTS)

# Programs that look at the libraries, apart from them: what they bring along is no part of bidsharm.
TOOLS = build/tools
$(TOOLS)/.done:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

build/locked.txt: constraints.txt container/lock.txt
	@mkdir -p build
	cat $^ > $@

# The same file from the same versions. The list inside the image (docs/containers.md) has Debian's packages and weights, too.
sbom: $(TOOLS)/.done build/locked.txt
	$(TOOLS)/bin/cyclonedx-py requirements --output-reproducible --of JSON -o build/sbom.json build/locked.txt

# --strict: a library that could not be asked about is a failure, not a pass.
audit: $(TOOLS)/.done build/locked.txt
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r build/locked.txt

# mypy and import-linter look at what is shipped: in the checkout workflows/ is not yet bidsharm.workflows.
lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/check build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/check .
	cd build/check && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p bidsharm
	cd build/check && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml

# Some hours on two cores. BIDSHARM_REAL_DATA names the real scans.
REAL_OUT ?= build/real
SIMULATED ?= build/simulated
HELD ?= build/held
HYBRID ?= build/hybrid
ZOO ?= build/zoo
HELD_SCANNERS = northA southB meadowJ deltaQ ultraX
HELD_PEOPLE = --subjects 8 --brain-only --seed 2026 --force \
  --labels $(foreach name,head-07 head-08 brain-04 brain-05,$(BIDSHARM_LABELS)/$(name).nii.gz)
ZOO_PEOPLE = --contrasts T1w T2w --subjects 12 --brain-only --seed 7 --force \
  --labels $(foreach name,head-01 head-02 head-03 head-04 head-05 head-06,$(BIDSHARM_LABELS)/$(name).nii.gz)
benchmark: $(VENV)/.test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/participant.py $(REAL_OUT)
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/preprocessing.py
	for script in bias_levels extraction carry; do \
	  $(BIN)/python benchmarks/$$script.py $(REAL_OUT) || exit 1; done
	$(BIN)/python benchmarks/classical_real.py $(REAL_OUT) --unet benchmarks/weights/unet_T1w.safetensors
	$(BIN)/python benchmarks/lesions.py
	$(BIN)/python benchmarks/every_method.py $(REAL_OUT) build/every-method
	$(BIN)/bidsharm-simulate $(SIMULATED) --subjects 2 --scanners coastE lakeN --contrasts T1w FLAIR --lesions 12 \
	  --labels $(BIDSHARM_LABELS)/head-01.nii.gz $(BIDSHARM_LABELS)/head-05.nii.gz --resolution 1.2 --seed 3 --force
	$(BIN)/bidsharm $(SIMULATED) $(SIMULATED)-out participant --skip-bids-validation --site session
	$(BIN)/python benchmarks/simulated_real.py $(REAL_OUT) $(SIMULATED)-out
	$(BIN)/bidsharm-simulate $(HELD) --scanners $(HELD_SCANNERS) clinicL --resolution 1 --lesions 6 $(HELD_PEOPLE)
	$(BIN)/python benchmarks/travelling.py $(HELD) $(HELD)-work --unet benchmarks/weights/unet_T1w.safetensors
	$(BIN)/python benchmarks/travelling.py $(HELD) $(HELD)-site-work --target southB --name travelling_site
	$(BIN)/python benchmarks/scanner_file.py build/noise-free.json $(HELD_SCANNERS) --noise-free
	$(BIN)/bidsharm-simulate $(HELD)-noise-free --scanners build/noise-free.json --resolution 1.5 $(HELD_PEOPLE)
	$(BIN)/python benchmarks/travelling.py $(HELD)-noise-free $(HELD)-noise-free-work --name travelling_noise_free --unet benchmarks/weights/unet_T1w.safetensors
	$(BIN)/python benchmarks/brightness.py $(HELD) $(HELD)-work
	$(BIN)/python benchmarks/brightness.py $(HELD)-noise-free $(HELD)-noise-free-work --name brightness_noise_free
	for contrast in T2w FLAIR; do \
	  $(BIN)/bidsharm-simulate $(HELD)-$$contrast --contrasts $$contrast --scanners $(HELD_SCANNERS) clinicL --resolution 1.5 --lesions 6 $(HELD_PEOPLE) && \
	  $(BIN)/python benchmarks/travelling.py $(HELD)-$$contrast $(HELD)-$$contrast-work --contrast $$contrast --name travelling_$$contrast || exit 1; done
	$(BIN)/python benchmarks/ceiling.py
	$(BIN)/python benchmarks/doubts.py
	$(BIN)/python benchmarks/real_doubts.py $(REAL_OUT)
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/tables.py --long
	$(BIN)/bidsharm-simulate $(HYBRID) --scanners southB ultraX lowfieldW --resolution 2 --subjects 16 --brain-only --seed 2027 --force \
	  --labels $(foreach name,head-07 head-08 brain-04 brain-05,$(BIDSHARM_LABELS)/$(name).nii.gz)
	$(BIN)/python benchmarks/hybrid.py $(HYBRID) $(HYBRID)-work
	$(BIN)/python benchmarks/tasks.py build/tasks
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/surfaces.py
	$(BIN)/python benchmarks/simulator_speed.py
	$(BIN)/python benchmarks/simulator_picture.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/scanner_file.py $(ZOO).json northA westD glacierP lowfieldW riverO --voxel-mm 2
	$(BIN)/bidsharm-simulate $(ZOO) --scanners $(ZOO).json --resolution 1.5 $(ZOO_PEOPLE)
	$(BIN)/bidsharm $(ZOO) $(ZOO)-prep participant --harmonizer identity --site session --skip-bids-validation
	$(BIN)/python benchmarks/scanner_file.py $(ZOO)-held.json northA southB meadowJ ultraX --voxel-mm 2
	$(BIN)/bidsharm-simulate $(ZOO)-held --scanners $(ZOO)-held.json --resolution 1.5 --lesions 6 $(HELD_PEOPLE:2026=2028)
	$(BIN)/python benchmarks/zoo.py $(ZOO)-prep $(ZOO)-held $(ZOO)-work --preset tiny --set voxel_mm=2 --budget 2m --threads 1
	$(BIN)/python benchmarks/zoo_picture.py $(ZOO)-held $(ZOO)-work
	$(BIN)/python benchmarks/guard.py $(ZOO)-held $(ZOO)-work
	$(BIN)/python benchmarks/zoo.py $(ZOO)-prep $(ZOO)-held $(ZOO)-longer-work --preset tiny --set voxel_mm=2 --budget 6m --threads 1 \
	  --methods haca3 dewey2020 cyclegan unit --name zoo_longer
	$(BIN)/python benchmarks/discriminators.py $(ZOO)-prep $(ZOO)-work/cache
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/card.py
	$(BIN)/python docs/survey.py

# The settings of the papers at 1 mm, half an hour a method: about a day on one GPU.
benchmark-gpu: $(VENV)/.test
	$(BIN)/bidsharm-simulate $(ZOO)-1mm --scanners northA westD glacierP lowfieldW riverO --resolution 1 $(ZOO_PEOPLE)
	$(BIN)/bidsharm $(ZOO)-1mm $(ZOO)-1mm-prep participant --harmonizer identity --site session --skip-bids-validation
	$(BIN)/bidsharm-simulate $(HELD) --scanners $(HELD_SCANNERS) clinicL --resolution 1 --lesions 6 $(HELD_PEOPLE)
	$(BIN)/python benchmarks/zoo.py $(ZOO)-1mm-prep $(HELD) $(ZOO)-1mm-work --budget 30m --name zoo_paper

clean:
	rm -rf build dist *.egg-info $(VENV) $(DEMO)
