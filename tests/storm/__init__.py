"""Damaged files and odd commands, seeded: `python -m tests.storm`. Kills and full disks are scripts/chaos.py."""

from __future__ import annotations

from chaos.child import import_all


def preload() -> None:
    """Import what the commands need, once."""
    import_all(
        """
        pretrain train engine.run.launch engine.run.load_run tasks.recursive_reasoning.task
        tasks.language_model.task models.recursive_reasoning.trm models.language_models.gpt dataset.text.loading
        scripts.evaluate scripts.visualize scripts.sample scripts.export_gpt2 scripts.verify_path
        verification.rules.stored
        """.split()
    )
