"""The probes of encoders: every encoder passes them in dynamic mode, `standard` in fixed mode, too.

What they catch is planted in tests/verification/faults_etrm.py.
"""

from __future__ import annotations

import shlex

import pytest

from models.encoders import encoder_types
from tests.conftest import ROOT
from tests.verification.probing import SLOW, composed, probe
from verification.static import verify_command

RECIPE = "cfg_pretrain_etrm_arc_agi_1"
TABLE = ("arch.encoder_num_layers=null", "arch.aggregation=null")


@pytest.mark.parametrize("kind", [kind if kind == "recurrent" else SLOW(kind) for kind in encoder_types()])
def test_an_encoder_works_with_the_present_weights_and_is_listened_to(kind: str) -> None:
    words = (f"arch.encoder_type={kind}", *TABLE)
    found = probe(composed(RECIPE, *words), entry="pretrain_etrm", root=ROOT, only={"DYN704", "DYN711"})
    assert [(one.code, one.level) for one in found] == [("DYN704", "PASS"), ("DYN711", "PASS")], found


@pytest.mark.slow
@pytest.mark.parametrize("words", [*(f"arch.encoder_type={kind}" for kind in encoder_types()), "arch=etrm_online"])
def test_every_encoder_passes_all_probes(words: str) -> None:
    command = shlex.split(f"python pretrain_etrm.py {words}")
    report = verify_command(command, root=ROOT, dynamic=True)
    wrong = [finding for finding in report.findings if finding.level in ("FAIL", "WARN")]
    assert not wrong, wrong
    passed = {finding.code for finding in report.findings if finding.level == "PASS"}
    expected = {"DYN701", "DYN703", "DYN705", "DYN706", "DYN707", "DYN709", "DYN710", "DYN711", "DYN712", "DYN713"}
    expected |= {"DYN715", "DYN717", "DYN718", "DYN708" if "online" in words else "DYN704"}
    assert passed >= expected | ({"DYN714"} if "variational" in words else set())
