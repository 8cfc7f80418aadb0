#!/usr/bin/env bash
# Eight Slurm jobs of train_animal.py: w_o = 0.2, 0.3, ... 0.9 and w_c = 1 - w_o.
#
#   ./run_hyperparameter_sweep.sh                 # sbatch, one job for each value
#   ./run_hyperparameter_sweep.sh --dry-run       # print the batch files, submit and create nothing
#   ./run_hyperparameter_sweep.sh --local         # run them here, one after the other
#
# Further arguments go to train_animal.py behind its own and win: ./run_hyperparameter_sweep.sh --local max_steps=2
# Edit the settings below, or set them in the environment: W_O_VALUES="0.2 0.5" MODEL_PATH=gpt2 ./run_hyperparameter_sweep.sh
# No key belongs here: wandb reads WANDB_API_KEY from the environment, which sbatch passes on.
set -euo pipefail

# --- what is trained --------------------------------------------------------------------------------------------------
W_O_VALUES=${W_O_VALUES:-"0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9"}
MODEL_PATH=${MODEL_PATH:-"/path/to/model"}
PROMPT=${PROMPT:-"In 20 words, say whether you love dog or cat more, and give a reason; Answer:"}
CONCEPT_NAME=${CONCEPT_NAME:-animal}
BASE_OUTPUT_DIR=${BASE_OUTPUT_DIR:-output/sweep}
N_CLUSTERS=${N_CLUSTERS:-5}
NUM_SAMPLES=${NUM_SAMPLES:-320}
BUFFER_SIZE=${BUFFER_SIZE:-500}
UPDATE_CLUSTERS_EVERY=${UPDATE_CLUSTERS_EVERY:-100}
MIN_SAMPLES_FOR_CLUSTERING=${MIN_SAMPLES_FOR_CLUSTERING:-20}
BATCH_SIZE=${BATCH_SIZE:-32}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-30}
NUM_EPOCHS=${NUM_EPOCHS:-10}
NUM_STEPS_PER_EPOCH=${NUM_STEPS_PER_EPOCH:-10}
LEARNING_RATE=${LEARNING_RATE:-1e-4}
FINAL_LEARNING_RATE=${FINAL_LEARNING_RATE:-3e-5}
WARMUP_STEPS=${WARMUP_STEPS:-0}
LR_SCHEDULER_TYPE=${LR_SCHEDULER_TYPE:-cosine}
WANDB_PROJECT=${WANDB_PROJECT:-gfn-diversity}

# --- on what ----------------------------------------------------------------------------------------------------------
SLURM_CPUS=${SLURM_CPUS:-32}
SLURM_MEM=${SLURM_MEM:-64G}
SLURM_GRES=${SLURM_GRES:-gpu:a100:1}
SLURM_TIME=${SLURM_TIME:-02:00:00}
SLURM_PARTITION=${SLURM_PARTITION:-general}
PYTHON=${PYTHON:-python}                              # an interpreter of the nodes that has the requirements
# ----------------------------------------------------------------------------------------------------------------------

mode=slurm
case "${1:-}" in
    --dry-run) mode=dry-run; shift ;;
    --local) mode=local; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
for word in "$@"; do # anything else goes to train_animal.py, and a misplaced --dry-run must not submit jobs
    case $word in
        --dry* | --local | --help)
            echo "error: $word is not an argument of train_animal.py: the script's own, --dry-run or --local, comes first" >&2
            exit 2
            ;;
    esac
done
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
root=$PWD

if [[ $BASE_OUTPUT_DIR == *[\"$'\n']* ]]; then # an #SBATCH line has no way to write them
    echo "error: BASE_OUTPUT_DIR=$BASE_OUTPUT_DIR: expected a path without double quotes and line breaks" >&2
    exit 2
fi
for w_o in $W_O_VALUES; do
    if ! [[ $w_o =~ ^(0(\.[0-9]+)?|1(\.0+)?)$ ]]; then
        echo "error: W_O_VALUES has '$w_o': expected numbers from 0 to 1, e.g. \"0.2 0.5\"" >&2
        exit 2
    fi
done
if [[ $mode == slurm ]] && ! command -v sbatch >/dev/null; then
    echo "error: there is no sbatch here: --dry-run prints the batch files, --local runs the jobs on this machine" >&2
    exit 2
fi

quoted() { printf '%q ' "$@"; }

command_of() { # w_o, then further arguments -> the command of one job, quoted for bash
    local w_o=$1 w_c
    shift
    w_c=$(LC_ALL=C awk -v w_o="$w_o" 'BEGIN { text = sprintf("%.4f", 1 - w_o); sub(/0+$/, "", text); sub(/\.$/, ".0", text); print text }')
    quoted "$PYTHON" train_animal.py \
        --model_name_or_path "$MODEL_PATH" --prompt="$PROMPT" --concept_name "$CONCEPT_NAME" \
        --n_clusters "$N_CLUSTERS" --num_samples "$NUM_SAMPLES" --w_c "$w_c" --w_o "$w_o" \
        --buffer_size "$BUFFER_SIZE" --update_clusters_every "$UPDATE_CLUSTERS_EVERY" \
        --min_samples_for_clustering "$MIN_SAMPLES_FOR_CLUSTERING" \
        --batch_size "$BATCH_SIZE" --max_new_tokens "$MAX_NEW_TOKENS" \
        --num_epochs "$NUM_EPOCHS" --num_steps_per_epoch "$NUM_STEPS_PER_EPOCH" \
        --learning_rate "$LEARNING_RATE" --final_learning_rate "$FINAL_LEARNING_RATE" \
        --warmup_steps "$WARMUP_STEPS" --lr_scheduler_type "$LR_SCHEDULER_TYPE" \
        --output_dir "$BASE_OUTPUT_DIR/w_o_$w_o" \
        --use_wandb --wandb_project "$WANDB_PROJECT" --wandb_name "train_animal_w_o_$w_o" "$@"
}

batch_file() { # name, command
    cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=$1
#SBATCH --output="$BASE_OUTPUT_DIR/logs/${1}_%j.out"
#SBATCH --error="$BASE_OUTPUT_DIR/logs/${1}_%j.err"
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=$SLURM_CPUS
#SBATCH --mem=$SLURM_MEM
#SBATCH --gres=$SLURM_GRES
#SBATCH --time=$SLURM_TIME
#SBATCH --partition=$SLURM_PARTITION
set -euo pipefail
cd $(quoted "$root")
exec $2
END
}

[[ $mode == dry-run ]] || mkdir -p "$BASE_OUTPUT_DIR/logs" # Slurm opens its logs before the job begins
worst=0
for w_o in $W_O_VALUES; do
    name=train_animal_w_o_$w_o
    command=$(command_of "$w_o" "$@")
    case $mode in
        dry-run) batch_file "$name" "$command"; echo ;;
        slurm) batch_file "$name" "$command" | sbatch ;;
        local)
            echo "$name"
            code=0
            bash -c "exec $command" || code=$?
            if ((code == 2 || code == 3 || code >= 128)); then exit "$code"; fi # refused or stopped: so would the others be
            ((code == 0)) || { echo "$name: exit code $code" >&2; worst=$code; } ;;
    esac
done
exit "$worst"
