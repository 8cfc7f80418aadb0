"""A SkyPilot task: a launch on cloud machines, as a file for `sky jobs launch`."""

from __future__ import annotations

import math
from typing import Any

import yaml

from engine.errors import UsageError
from launcher.destination import LaunchSpec
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
"""SkyPilot copies `workdir` to ~/sky_workdir, where the command runs."""


def task(spec: LaunchSpec) -> dict[str, Any]:
    """The task in SkyPilot's form. After exit code 3 (stopped, saved) the same command is started again and resumes.

    Raises: UsageError if the command needs GPUs of unknown kind: SkyPilot would use a machine without any.
    """
    own = spec.own
    if spec.gpus and not own["accelerator"]:
        raise UsageError(
            f"{spec.gpus} GPU(s) on each node, of which kind? Give --accelerator H100; none: device=cpu, or --gpus 0"
        )
    recovery = {"max_restarts_on_errors": own["restarts"] or 0, "recover_on_exit_codes": [CODES["interrupted"]]}
    resources = {
        "infra": own["infra"],
        "accelerators": f"{own['accelerator']}:{spec.gpus}" if spec.gpus else None,
        "cpus": None if spec.cpus is None else f"{spec.cpus}+",
        "memory": None if spec.mem_gb is None else f"{math.ceil(spec.mem_gb)}+",
        "use_spot": own["spot"] or None,
        "job_recovery": recovery,
    }
    mounts = {CHECKPOINTS: {"source": own["checkpoints"], "mode": "MOUNT_CACHED"}} if own["checkpoints"] else None
    known = VARIABLES if str(spec.gpus) == spec.per_node else {k: v for k, v in VARIABLES.items() if k != "ranks"}
    line = spec.node_line("python", "scripts/launch.py", known, by_file=False)
    description = {
        "name": spec.name,
        "num_nodes": spec.nodes,
        "workdir": str(spec.cwd),
        "resources": {key: value for key, value in resources.items() if value is not None},
        "file_mounts": mounts,
        "setup": "".join(f"{one}\n" for one in ("set -e", *SETUP, *own["prepare"])),
        "run": f"{ENVIRONMENT}\n{line}\n",
    }
    return {key: value for key, value in description.items() if value is not None}


def as_yaml(description: dict[str, Any]) -> str:
    """The text of the task's file; shell scripts are block scalars."""
    return str(yaml.dump(description, Dumper=_Dumper, sort_keys=False, width=10_000))


def check(description: dict[str, Any]) -> str:
    """Check the task against SkyPilot's own schema. Returns why it was not checked, if SkyPilot is not installed.

    Raises: UsageError with SkyPilot's message.
    """
    try:
        from sky.utils import common_utils, schemas
    except ImportError:
        return "not checked against SkyPilot's schema: pip install -e '.[cloud]', in an environment without wandb"
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
    """Writes text of several lines as a block scalar."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
