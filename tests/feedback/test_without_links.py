"""The documented names of checkpoints in a run on a file system without symbolic links, or copied without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from tasks.feedback.runs import base_checkpoint, checkpoint_in


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (4, 8):
        (tmp_path / f"checkpoints/step_{step}").mkdir(parents=True)
    (tmp_path / "checkpoints/latest").write_text("step_8\n")
    (tmp_path / "checkpoints/best").write_text("step_4\n")
    (tmp_path / "config.resolved.yaml").write_text("active_dataset: gsm8k\n")
    rows = ("type,epoch,loss,lr,step", "train,1,3.5,0.1,4", "val,1,3.5,0.1,4", "val,1.5,3.4,0.1,6", "val,2,3.3,0.1,8")
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("epoch_ckpt_gsm8k.pt", 8), ("best_ckpt_gsm8k.pt", 4)),
        *(("epoch_ckpt_gsm8k_1.pt", 4), ("epoch_ckpt_gsm8k_2.pt", 8)),
    ],
)
def test_names_without_links(run: Path, name: str, step: int) -> None:
    assert checkpoint_in(run, name, "checkpoint_name") == run / f"checkpoints/step_{step}"


@pytest.mark.parametrize("name", ["epoch_ckpt_wikitext.pt", "epoch_ckpt_gsm8k_3.pt", "last.pt"])
def test_other_names_are_refused(run: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no such checkpoint .*step_4"):
        checkpoint_in(run, name, "checkpoint_name")


def test_a_link_whose_target_is_gone_is_no_other_checkpoint(run: Path) -> None:
    (run / "epoch_ckpt_gsm8k.pt").symlink_to("checkpoints/step_99")
    with pytest.raises(UsageError, match="links to checkpoints/step_99, which is gone"):
        checkpoint_in(run, "epoch_ckpt_gsm8k.pt", "checkpoint_name")
    (run / "epoch_ckpt_gsm8k.pt").unlink()
    (run / "checkpoints/latest").write_text("../elsewhere")
    with pytest.raises(UsageError, match="there is no such checkpoint"):
        checkpoint_in(run, "epoch_ckpt_gsm8k.pt", "checkpoint_name")


def test_a_file_is_no_base(run: Path) -> None:
    """The published code writes files of torch.save; the pointers of a run are files that name a checkpoint."""
    (run / "epoch_ckpt_gsm8k.pt").touch()
    with pytest.raises(
        UsageError, match=r"ff_checkpoint_name=epoch_ckpt_gsm8k.pt: .* is a file: expected a checkpoint"
    ):
        base_checkpoint(f"{run}/", "epoch_ckpt_gsm8k.pt", ".out", "gsm8k")
    assert base_checkpoint(f"{run}/", "latest", ".out", "gsm8k") == run / "checkpoints/latest"
