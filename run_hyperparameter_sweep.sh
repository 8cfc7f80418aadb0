#!/usr/bin/env bash
# The sweep of docs/animal.md: settings and options are in scripts/run_hyperparameter_sweep.sh.
exec "$(dirname -- "${BASH_SOURCE[0]}")/scripts/run_hyperparameter_sweep.sh" "$@"
