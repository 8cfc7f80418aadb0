"""A SkyPilot task: one launch on machines of a cloud, as the file that `sky jobs launch` takes."""

from __future__ import annotations

import math
from typing import Any

import yaml

from engine.errors import UsageError
from launcher.destination import Order
from launcher.outcome import CODES

VARIABLES = {
    "nodes": '"$SKYPILOT_NUM_NODES"',
    "ranks": '"$SKYPILOT_NUM_GPUS_PER_NODE"',
    "node_rank": '"$SKYPILOT_NODE_RANK"',
    "head": '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"',
}
"""Variables that SkyPilot sets on each node, by the option of launch.py."""
ENVIRONMENT = "conda activate loopforge"
SETUP = (
    "conda env list | grep -q loopforge || conda create -y -n loopforge python=3.12",
    ENVIRONMENT,
    "python -m pip install -e . -c constraints.txt",
)
CHECKPOINTS = "~/sky_workdir/checkpoints"
"""`workdir` is copied to ~/sky_workdir, where the command runs."""


def task(order: Order) -> dict[str, Any]:
    """The task as SkyPilot reads it. Exit code 3 (stopped, saved) starts the same command again, which resumes.

    Raises: UsageError where the command needs GPUs whose kind is not named: SkyPilot would give it a machine without.
    """
    own = order.own
    if order.gpus and not own["accelerator"]:
        raise UsageError(
            f"{order.gpus} GPU(s) on each node, of which kind? Give --accelerator H100; none: device=cpu, or --gpus 0"
        )
    recovery = {"max_restarts_on_errors": own["restarts"] or 0, "recover_on_exit_codes": [CODES["interrupted"]]}
    resources = {
        "infra": own["infra"],
        "accelerators": f"{own['accelerator']}:{order.gpus}" if order.gpus else None,
        "cpus": None if order.cpus is None else f"{order.cpus}+",
        "memory": None if order.mem_gb is None else f"{math.ceil(order.mem_gb)}+",
        "use_spot": own["spot"] or None,
        "job_recovery": recovery,
    }
    mounts = {CHECKPOINTS: {"source": own["checkpoints"], "mode": "MOUNT_CACHED"}} if own["checkpoints"] else None
    known = VARIABLES if str(order.gpus) == order.per_node else {k: v for k, v in VARIABLES.items() if k != "ranks"}
    line = order.node_line("python", "scripts/launch.py", known, by_file=False)
    whole = {
        "name": order.name,
        "num_nodes": order.nodes,
        "workdir": str(order.cwd),
        "resources": {key: value for key, value in resources.items() if value is not None},
        "file_mounts": mounts,
        "setup": "".join(f"{one}\n" for one in ("set -e", *SETUP, *own["prepare"])),
        "run": f"{ENVIRONMENT}\n{line}\n",
    }
    return {key: value for key, value in whole.items() if value is not None}


def as_yaml(description: dict[str, Any]) -> str:
    """The task's file; what a shell reads stands line by line."""
    return str(yaml.dump(description, Dumper=_Dumper, sort_keys=False, width=10_000))


def check(description: dict[str, Any]) -> str:
    """Hold the task against SkyPilot's own schema. Returns why not, where SkyPilot is not installed.

    Raises: UsageError with SkyPilot's words.
    """
    try:
        from sky.utils import common_utils, schemas
    except ImportError:
        return "not held against SkyPilot's schema: pip install -e '.[cloud]', in an environment without wandb"
    parts = [
        (description, schemas.get_task_schema(), "task"),
        (description["resources"], schemas.get_resources_schema(), "resources"),
        *((one, schemas.get_storage_schema(), "file_mounts") for one in description.get("file_mounts", {}).values()),
    ]
    for part, schema, name in parts:
        try:
            common_utils.validate_schema(part, schema, f"{name}: ")
        except ValueError as error:
            raise UsageError(f"SkyPilot refuses the task: {' '.join(str(error).split())}") from None
    return ""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Several lines as a block."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
