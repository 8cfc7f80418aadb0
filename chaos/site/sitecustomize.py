"""On PYTHONPATH of a command that starts others: Python imports this file in each of them before anything else."""

import chaos.inject

chaos.inject.arm_job()
