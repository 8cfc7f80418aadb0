"""A Slurm cluster of one machine: `sbatch`, `srun` and `scontrol` that execute a job here, and queue it again.

What they keep is in the folder STAND_IN_SLURM: the batch file, the lives of the job, the process groups of its tasks.
A job is queued again where `scontrol requeue` or a file `preempted` says so, as Slurm does with PreemptMode=REQUEUE.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

SBATCH = r"""#!/bin/bash
# the batch file's tasks run in the background, again after each requeue
cp "$1" "$STAND_IN_SLURM/submitted.sh"
nodes=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
(
    life=0
    while :; do
        echo "$life" >> "$STAND_IN_SLURM/lives"
        SLURM_JOB_ID=$STAND_IN_JOB SLURM_JOB_NUM_NODES=$nodes SLURM_NTASKS=$nodes SLURM_JOB_NODELIST="here[0-1]" \
            SLURM_RESTART_COUNT=$life bash "$STAND_IN_SLURM/submitted.sh"
        code=$?
        if [[ -e $STAND_IN_SLURM/requeue ]]; then rm "$STAND_IN_SLURM/requeue"
        elif [[ -e $STAND_IN_SLURM/preempted ]]; then rm "$STAND_IN_SLURM/preempted"
        else break; fi
        life=$((life + 1))
    done
    echo "$code" > "$STAND_IN_SLURM/.ended" && mv "$STAND_IN_SLURM/.ended" "$STAND_IN_SLURM/ended"
) > "$STAND_IN_SLURM/printed" 2>&1 < /dev/null &
echo "Submitted batch job $STAND_IN_JOB"
"""
SRUN = r"""#!/bin/bash
# one task on each node, each in its own process group; the highest exit code
while [[ $1 == --* ]]; do case $1 in --output | --error) output=$2; shift 2 ;; *) shift ;; esac; done
rm -f "$STAND_IN_SLURM"/group_*
for ((i = 0; i < SLURM_NTASKS; i++)); do
    log=${output//%j/$SLURM_JOB_ID}; log=${log//%t/$i}
    SLURM_PROCID=$i SLURM_NODEID=$i SLURM_LOCALID=0 setsid "$@" >> "$log" 2>&1 &
    pids[i]=$!
    echo "$!" > "$STAND_IN_SLURM/group_$i"
done
worst=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; ((code > worst)) && worst=$code; done
exit "$worst"
"""
SCONTROL = r"""#!/bin/bash
case $1 in
    show) for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do echo 127.0.0.1; done ;;
    requeue) touch "$STAND_IN_SLURM/requeue" ;;
esac
"""


def install(folder: Path) -> dict[str, str]:
    """Write the commands into `folder`; the variables with which a process finds them.

    The job's number is such that the port which `launch.py` makes of it is free.
    """
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    number = next(number for number in random.sample(range(1000, 9999), 100) if _is_free(20000 + number))
    return {"PATH": f"{binaries}:{os.environ['PATH']}", "STAND_IN_SLURM": str(folder), "STAND_IN_JOB": str(number)}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
