"""The probes of encoders: every encoder passes them in dynamic mode, `standard` in fixed mode, too.

What they catch is planted in tests/verification/faults_etrm.py.
"""

from __future__ import annotations

import json
import shlex

import pytest

from dataset.arc.pattern import PatternPlan, build_patterns
from models.encoders import encoder_types
from tests.conftest import ROOT
from tests.verification.probing import SLOW, composed, probe
from verification.static import verify_command

RECIPE = "cfg_pretrain_etrm_arc_agi_1"


@pytest.mark.parametrize("kind", [kind if kind == "recurrent" else SLOW(kind) for kind in encoder_types()])
def test_an_encoder_works_with_the_present_weights_and_is_listened_to(kind: str) -> None:
    findings = probe(
        composed(RECIPE, f"arch.encoder_type={kind}"), entry="pretrain_etrm", root=ROOT, only={"DYN704", "DYN711"}
    )
    assert [(one.code, one.level) for one in findings] == [("DYN704", "PASS"), ("DYN711", "PASS")], findings


@pytest.mark.slow
@pytest.mark.parametrize("words", [*(f"arch.encoder_type={kind}" for kind in encoder_types()), "arch=etrm_online"])
def test_every_encoder_passes_all_probes(words: str) -> None:
    command = shlex.split(f"python pretrain_etrm.py {words}")
    report = verify_command(command, root=ROOT, dynamic=True)
    problems = [finding for finding in report.findings if finding.level in ("FAIL", "WARN")]
    assert not problems, problems
    passed = {finding.code for finding in report.findings if finding.level == "PASS"}
    expected = {"DYN701", "DYN703", "DYN705", "DYN706", "DYN707", "DYN709", "DYN710", "DYN711", "DYN712", "DYN713"}
    expected |= {"DYN715", "DYN717", "DYN718", "DYN708" if "online" in words else "DYN704"}
    assert passed >= expected | ({"DYN714"} if "variational" in words else set())


def test_a_test_that_no_evaluation_asks_is_reported(tmp_path) -> None:
    data = tmp_path / "patterns"
    build_patterns(data, PatternPlan(side=4, pattern=2, num_train=4, num_test=3, demonstrations=2))
    command = ["python", "pretrain_etrm.py", "--config-name=cfg_pretrain_etrm_overfit", f"data_paths=[{data}]"]

    def judged() -> list[tuple[str, str]]:
        report = verify_command(command, root=ROOT, with_data=True, probes=False)
        return [(one.level, one.message) for one in report.findings if one.code == "DAT522"]

    assert judged() == [("PASS", f"{data}: 3 tests of 3 tasks, all asked")]
    tasks = json.loads((data / "test_puzzles.json").read_text())
    name, task = next(iter(tasks.items()))
    task["test"].append({"input": [[1, 2]], "output": [[2, 1]]})
    (data / "test_puzzles.json").write_text(json.dumps(tasks))
    text = f"{data}: 1 of 4 tests of 3 tasks are never asked, first of {name}: a score leaves them out"
    assert judged() == [("FAIL", text)]
