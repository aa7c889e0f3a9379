# Every target calls tools/python, which sets up what it needs. Options: see `make help`.
PY := tools/python
quote = '$(subst ','\'',$(1))'
opt = $(if $($(1)),--$(2) $(call quote,$($(1))))
PLACE := $(call opt,PROFILE,profile) $(call opt,RESULTS,results)
# Terminals keep their width under this name.
COLUMN_NAMES := $(if $(findstring =,$(COLUMNS)),--columns $(call quote,$(COLUMNS)))
OWN := $(if $(MARGIN),evaluate.margin=$(MARGIN)) $(if $(filter 0,$(SWEEP)),tune=null) \
  $(if $(filter 1,$(ARTICLE)),article=true)
ASK := $(PLACE) $(call opt,MODEL,model) $(call opt,DATA,data) $(COLUMN_NAMES) $(call opt,MMLU,mmlu) \
  $(call opt,METHODS,methods) $(call opt,SEEDS,seeds) $(call opt,STEPS,steps) \
  $(call opt,LIMIT,limit) $(call opt,KEEP,keep) $(if $(TASKS),--mmlu $(call quote,tasks:$(TASKS))) $(foreach change,$(SET) $(OWN),--set $(call quote,$(change)))

.DEFAULT_GOAL := help
.PHONY: help setup data plan reproduce tune try report publish forecasts doctor gpu-check card check-model check-models rent lab ladder check test bench faults soak fuzz audit sbom clean

define MORE

Parts by themselves (`tools/python -m studylib VERB --help` tells all of one):
  forecast   memory and hours without a card: forecast --model shape:llama-2-13b --method qlora --gpu rtx4090-24gb
  advise     which method for your case: advise --model shape:llama-2-13b --change task --tokens 5000000
  evaluate   accuracy of a model: evaluate --model path:FOLDER --mmlu FOLDER
  serve      what one more variant costs to serve: serve --profile cpu
  diff       what moved between two studies: diff results/A results/B
  merge      a base and its adapter as one checkpoint: merge RUN_ID
  prices     the offers behind every dollar: prices

For those who change the study, also targets of make
  bench      has anything become slower than benchmarks/bench.json says: QUICK=1
  faults     break what surrounds a study, each way for real, and write docs/faults.md
  soak, fuzz kill studies at random moments; feed the readers with what hypothesis makes up: MINUTES=60
  audit      known holes in the packages; asks the package index
  sbom       what is installed, as CycloneDX JSON: built/sbom.json

Options
  which study   PROFILE=cpu|smoke|real|systems|gpu|article|custom|FILE.yaml|... RESULTS=FOLDER
  your own      MODEL= DATA= COLUMNS= MMLU= TASKS= METHODS= SEEDS= STEPS= LIMIT= KEEP=adapters|all|none
                MARGIN=2 SWEEP=0 ARTICLE=1 SET='train.seq_len=1024 ...'
  how it runs   BUDGET=10 YES=1 FORCE=1 EXTEND= EXECUTOR=local|ray RAY_ADDRESS=
  rent          GPU=H100:1 SPOT=1 CLOUD=lambda MAX=3.50 PRICES=FILE DRYRUN=1
endef
export MORE

help: ## these lines
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '%s\n' "$$MORE"

setup: ## install the packages (the other targets do it too)
	@$(PY) -c 'import sys; print("ready:", sys.executable)'

data: ## bring in what PROFILE=real reads and the study does not ship; FROM=FOLDER has it: make data
	@$(PY) -m studylib data $(call opt,PROFILE,profile) $(call opt,FROM,from)

plan: ## what would run, how long, at what cost: make plan PROFILE=gpu
	@$(PY) -m studylib plan $(ASK) $(call opt,GPU,gpu)

reproduce: ## run all that is not done yet, then write the report: make reproduce PROFILE=smoke
	@$(PY) -m studylib reproduce $(ASK) $(call opt,BUDGET,budget) $(if $(YES),--yes) $(if $(FORCE),--force) $(call opt,EXECUTOR,executor) $(call opt,RAY_ADDRESS,ray-address)

tune: ## choose each method's learning rate on validation questions: make tune PROFILE=cpu
	@$(PY) -m studylib tune $(ASK) $(call opt,EXTEND,extend) $(call opt,BUDGET,budget) $(if $(YES),--yes)

try: ## what a trained model answers, beside its base: make try RUN=ID PROMPT='text'
	@$(PY) -m studylib try $(call quote,$(RUN)) $(if $(PROMPT),$(call quote,$(PROMPT))) $(PLACE)

report: ## rebuild REPORT.md from the reference records
	@$(PY) -m studylib report --reference

publish: ## make results/PROFILE the reference records: make publish PROFILE=cpu
	@$(PY) -m studylib publish $(PLACE)

forecasts: ## trace again what the report shows as forecast, without a GPU
	@$(PY) -m studylib forecasts

rent: ## run a study on a rented machine; DRYRUN=1 only shows what it costs: make rent GPU=H100:1 PROFILE=gpu DRYRUN=1
	@$(PY) -m studylib rent $(ASK) $(call opt,GPU,gpu) $(if $(SPOT),--spot) $(call opt,CLOUD,cloud) $(call opt,BUDGET,budget) $(call opt,MAX,max) $(call opt,PRICES,prices) $(if $(DRYRUN),--dry-run) $(if $(YES),--yes)

doctor: ## what this machine has, and which profile fits
	@$(PY) -m studylib doctor

gpu-check: ## two minutes on a CUDA card, can figures measured on it be trusted
	@$(PY) -m studylib gpu-check $(call opt,RESULTS,results)

card: ## a study of one card under a clock: make card MINUTES=12 MODELS=7b=shape:Llama-3.1-8B STEPS=13b,7b
	@$(PY) -m studylib card $(call opt,MINUTES,minutes) $(call opt,MODELS,models) $(call opt,STEPS,steps) $(call opt,DATA,data) $(call opt,MMLU,mmlu) $(call opt,RESULTS,results) $(foreach change,$(SET),--set $(call quote,$(change)))

check-model: ## may a model be used here, tried in minutes: make check-model MODEL=path:FOLDER
	@$(PY) -m studylib check-model $(call quote,$(MODEL))

check-models: ## try every kind of model by tiny ones and write docs/models.md, 15 minutes
	@$(PY) -m studylib check-model --zoo

lab: ## open the notebooks' start page in JupyterLab on 127.0.0.1
	@$(PY) -m jupyterlab --config=tools/lab/config.py

ladder: ## rebuild the toy models from their seed; RUNG=60m builds a larger one, for a card
	@$(PY) -m studylib.modelling.ladder $(call opt,RUNG,rung)

check: ## style, types, notebooks kept clean
	@$(PY) -m ruff check . && $(PY) -m ruff format --check -q . && $(PY) -m mypy && $(PY) -m pytest tests/test_architecture.py tests/test_hygiene.py

test: ## all tests, a file a core; TESTS=tests/test_meter.py for some of them
	@$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 1 $(TESTS)

bench: # has anything become slower than benchmarks/bench.json says; the short part: make bench QUICK=1
	@$(PY) benchmarks/bench.py $(if $(QUICK),--quick) $(call opt,DATA,data) $(call opt,ROWS,rows)

faults: # break what surrounds a study, each way for real, and write docs/faults.md, 6 minutes
	@$(PY) tests/faults/write_table.py

soak: # kill studies at random moments, up to an hour: make soak MINUTES=60
	@$(PY) tests/faults/soak.py $(call opt,MINUTES,minutes)

fuzz: # feed the readers with what hypothesis makes up: make fuzz MINUTES=2
	@$(PY) tests/fuzz/fuzz.py $(call opt,MINUTES,minutes)

audit: # known holes in the packages; asks the package index
	@tools/supply audit

sbom: # what is installed, as CycloneDX JSON: built/sbom.json
	@tools/supply sbom

clean: ## remove the virtual environment and caches, never records
	@rm -rf .venv .venv-sky .mypy_cache .pytest_cache .ruff_cache *.egg-info && find . -name __pycache__ -prune -exec rm -rf {} +
