#!/usr/bin/env bash
# Quick test of HRM with a manager on a CPU: a small model, ten steps, the feudal loss on, no wandb. Call it from any
# folder; further arguments go behind its own and win: ./run_training.sh max_steps=50 loss.feudal_loss_weight=0.02
set -euo pipefail
CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

installed='import sys, importlib.util as u; sys.exit(None in map(u.find_spec, ("hydra", "torch")))'
for python in python .venv/bin/python python3; do
    if "$python" -c "$installed" 2>/dev/null; then
        exec "$python" pretrain.py run_name=quick_test device=cpu max_steps=10 enable_wandb=false \
            global_batch_size=4 epochs=1 lr_warmup_steps=0 eval_interval=null final_eval=false \
            loss.feudal_loss_weight=0.1 arch.subgoal_head.manager_period=2 \
            arch.hidden_size=32 arch.num_heads=2 arch.expansion=2 arch.H_layers=1 arch.L_layers=1 \
            arch.H_cycles=1 arch.L_cycles=1 arch.halt_max_steps=4 "$@"
    fi
done
echo "error: no python here has torch and hydra: run make setup in $PWD" >&2
exit 2
