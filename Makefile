# betaflow: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup align track promote rollback chat test lint types ui clean lock
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1
BIN := .venv/bin

help:           ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup:          ## make .venv from the lock in requirements/
	@scripts/setup.sh

align: setup    ## run the whole pipeline of params.yaml (what is up to date is not redone)
	@$(BIN)/python -m flows.align

track: setup    ## fill MLflow in from the files in out/ (after its server was away)
	@$(BIN)/python -m tasks.track

promote: setup  ## make the best arm the champion if it holds every rule of promotion (ARM=… names one)
	@$(BIN)/python -m flows.promote $(if $(ARM),--arm $(ARM))

rollback: setup ## make the champion before the present one champion again
	@$(BIN)/python -m flows.rollback

chat: setup     ## talk to the champion and to SFT side by side (CHAT=--help: more)
	@$(BIN)/python -m tasks.chat $(CHAT)

test: setup     ## run the tests, two files at a time: those of whole pipelines, which take longest, early
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup     ## ruff, and the layers by import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: setup    ## mypy
	@$(BIN)/mypy

ui: setup       ## open MLflow on http://127.0.0.1:5000 (PORT=… for another port)
	@case "$$MLFLOW_TRACKING_URI" in http*) \
	  echo "MLFLOW_TRACKING_URI names a server: the runs are there; unset it to see this folder's" >&2; exit 2;; esac; \
	$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $${PORT:-5000}

clean:          ## remove what the pipeline made (DVC's cache stays: the next run takes it from there)
	@rm -rf out dvc.lock

lock:           ## compile the locks anew
	@scripts/lock.sh
