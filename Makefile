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
.PHONY: help setup data plan reproduce tune try report publish forecasts doctor gpu-check card check-model check-models rent lab ladder check test clean

help: ## these lines
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Options: PROFILE=cpu|smoke|systems|gpu|article|custom|FILE.yaml|… RESULTS=FOLDER MODEL= DATA= COLUMNS= MMLU= METHODS= SEEDS= STEPS= LIMIT= TASKS= KEEP=adapters|all|none FORCE=1 BUDGET=10 YES=1 EXECUTOR=local|ray RAY_ADDRESS= EXTEND= SET='train.seq_len=1024 …'; of your own study besides: MARGIN=2 SWEEP=0 ARTICLE=1"
	@echo "Of rent besides: GPU=H100:1 SPOT=1 CLOUD=lambda BUDGET=10 MAX=3.50 PRICES=FILE DRYRUN=1 YES=1"

setup: ## install the packages (the other targets do it too)
	@$(PY) -c 'import sys; print("ready:", sys.executable)'

data: ## bring in what PROFILE=real reads and the study does not ship; FROM=FOLDER has it
	@$(PY) -m studylib data $(call opt,PROFILE,profile) $(call opt,FROM,from)

plan: ## what would run, how long, at what cost
	@$(PY) -m studylib plan $(ASK)

reproduce: ## run all that is not done yet, then write the report
	@$(PY) -m studylib reproduce $(ASK) $(call opt,BUDGET,budget) $(if $(YES),--yes) $(if $(FORCE),--force) $(call opt,EXECUTOR,executor) $(call opt,RAY_ADDRESS,ray-address)

tune: ## choose each method's learning rate on validation questions
	@$(PY) -m studylib tune $(ASK) $(call opt,EXTEND,extend) $(call opt,BUDGET,budget) $(if $(YES),--yes)

try: ## RUN=ID PROMPT='text': what a trained model answers, beside its base
	@$(PY) -m studylib try $(call quote,$(RUN)) $(if $(PROMPT),$(call quote,$(PROMPT))) $(PLACE)

report: ## rebuild REPORT.md from the reference records
	@$(PY) -m studylib report --reference

publish: ## make results/PROFILE the reference records
	@$(PY) -m studylib publish $(PLACE)

forecasts: ## trace again what the report shows as forecast, without a GPU
	@$(PY) -m studylib forecasts

rent: ## GPU=H100:1 runs a study on a rented machine; DRYRUN=1 only shows what it costs
	@$(PY) -m studylib rent $(ASK) $(call opt,GPU,gpu) $(if $(SPOT),--spot) $(call opt,CLOUD,cloud) $(call opt,BUDGET,budget) $(call opt,MAX,max) $(call opt,PRICES,prices) $(if $(DRYRUN),--dry-run) $(if $(YES),--yes)

doctor: ## what this machine has, and which profile fits
	@$(PY) -m studylib doctor

gpu-check: ## two minutes on a CUDA card: can figures measured on it be trusted
	@$(PY) -m studylib gpu-check $(call opt,RESULTS,results)

card: ## a study of one card under a clock: MINUTES=12 MODELS=7b=shape:Llama-3.1-8B STEPS=13b,7b
	@$(PY) -m studylib card $(call opt,MINUTES,minutes) $(call opt,MODELS,models) $(call opt,STEPS,steps) $(call opt,DATA,data) $(call opt,MMLU,mmlu) $(call opt,RESULTS,results) $(foreach change,$(SET),--set $(call quote,$(change)))

check-model: ## MODEL=hub:ID|path:FOLDER: may it be used here, tried in minutes
	@$(PY) -m studylib check-model $(call quote,$(MODEL))

check-models: ## try every kind of model by tiny ones and write docs/models.md, 15 minutes
	@$(PY) -m studylib check-model --zoo

lab: ## open the notebooks' start page in JupyterLab on 127.0.0.1
	@$(PY) -m jupyterlab --config=tools/lab/config.py

ladder: ## rebuild the bundled models from their seed; RUNG=60m builds a larger one, for a card
	@$(PY) -m studylib.modelling.ladder $(call opt,RUNG,rung)

check: ## style, types, notebooks kept clean
	@$(PY) -m ruff check . && $(PY) -m ruff format --check -q . && $(PY) -m mypy && $(PY) -m pytest tests/test_architecture.py tests/test_hygiene.py

test: ## all tests, a file a core; TESTS=tests/test_meter.py for some of them
	@$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

clean: ## remove the virtual environment and caches, never records
	@rm -rf .venv .venv-sky .mypy_cache .pytest_cache .ruff_cache *.egg-info && find . -name __pycache__ -prune -exec rm -rf {} +
