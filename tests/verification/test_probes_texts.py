"""The probes of language models: no false alarm on recipes and modes, and each fault, planted, is seen under its code."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch

import tasks.language_model.build as building
from models.language_models.attention import CausalSelfAttention
from models.language_models.gpt import GPT, GPTConfig, LMShape
from tests.conftest import ROOT
from tests.e2e.recipes import TRAIN
from tests.verification import probing
from tests.verification.probing import SLOW, around, composed, probe
from verification.codes import DEEP
from verification.finding import Finding

CPU = "cfg_train_cpu"
CODES = ["DYN700", "DYN703", "DYN706", "DYN709", "DYN712", "DYN716", "DYN717"]
MIXTURE = ("training_mode=multidataset", "dataset_list=[a,b,c,a]")


def findings_of(*overrides: str, recipe: str = CPU, only: Iterable[str] = DEEP) -> list[Finding]:
    return probe(composed(recipe, *overrides), entry="train.py", root=ROOT, only=only, overrides=overrides)


fails = functools.partial(probing.fails, recipe=CPU, entry="train.py")


@pytest.mark.parametrize("recipe", TRAIN.recipes)
def test_recipes_pass(recipe: str) -> None:
    assert [(f.code, f.level) for f in findings_of(recipe=recipe)] == [(code, "PASS") for code in CODES]


@pytest.mark.parametrize(
    "overrides",
    [
        SLOW((*MIXTURE, "dataset_sampling_probs=[1,2,3,4]")),
        SLOW((*MIXTURE, "multidataset_wte=true", "multidataset_criterion=mean", "arch=gpt_fast")),
        ("training_mode=multicontext", "multicontext_datasets=[a,b]", "arch.loss.stream_weights=[1,2]"),
        ("arch=gpt2", "init_from=gpt2", "arch.n_layer=24", "arch.n_head=16", "arch.n_embd=1024", "arch.n_kv_group=8"),
        ("arch.window_size=9", "arch.softmax_variant_attn=relu2max", "arch.dropout=0.3", "arch.share_attn=cycle"),
        SLOW(("arch.pos_encodings=rope", "arch.rope_length=16", "arch.norm_placement=peri", "arch.mlp_variant=swiglu")),
        SLOW(("optimizer=muon", "lr_scheduler=wsd", "ema=true", "grad_clip=0", "seed=5")),
        SLOW(("eval_only=true",)),
        ("sampling_method=without_replacement", "eval_mode=random", "early_stop_patience=2"),
    ],
)
def test_good_settings_pass(overrides: tuple[str, ...]) -> None:
    findings = findings_of(*overrides)
    assert {f.level for f in findings} == {"PASS"}, [f for f in findings if f.level != "PASS"]
    assert [f.code for f in findings] == CODES


def test_the_size_is_that_of_the_real_model() -> None:
    (finding,) = findings_of("training_mode=multicontext", "multicontext_datasets=[a,b]", only={"DYN700"})
    with torch.device("meta"):
        full = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64), LMShape((256, 256)))
    size = f"{full.num_parameters():,} parameters (vocabularies of 256 where the data are not here)"
    assert size in finding.message


def test_what_cannot_be_built_is_told_first() -> None:
    for override, message in (("arch.n_head=7", "n_head"), ("+arch.n_heads=2", "unknown key")):
        findings = findings_of(override)
        assert [(f.code, f.level) for f in findings] == [("DYN700", "FAIL")]
        assert message in findings[0].message


# --- faults -----------------------------------------------------------------------------------------------------------


def test_attention_that_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.functional.scaled_dot_product_attention

    def ahead(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{**kwargs, "is_causal": False})

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", ahead)
    assert "training predictions depend on tokens that come after" in fails("DYN712")


def test_a_mask_that_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    around(monkeypatch, CausalSelfAttention, "_mix", lambda mix, self, q, k, v, m: mix(self, q, k, v, m | True))
    assert "evaluation predictions" in fails("DYN712", "arch.softmax_variant_attn=sigmoidmax")


def test_a_run_key_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    override = ("lr_scheduler=none", "learning_rate=0.02")
    assert [f.level for f in findings_of(*override, only={"DYN716"})] == ["PASS"]
    around(monkeypatch, building, "param_groups", lambda make, *a, **k: make(*a, **{**k, "lr": 1e-3}))
    findings = findings_of(*override, only={"DYN716"})
    assert [f.level for f in findings] == ["WARN"], findings
    assert "learning_rate=0.02" in findings[0].message


@pytest.mark.slow
def test_by_the_command_of_a_user() -> None:
    line = "python train.py --config-name=cfg_train_cpu --n_head 2 --beta2 0.95 --dataset=shakespeare_char"
    done = subprocess.run(
        [sys.executable, "scripts/verify_path.py", "--dynamic", "--json", "-", "--", *shlex.split(line)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    levels = {f["code"]: f["level"] for f in json.loads(done.stdout)["reports"][0]["findings"] if f["step"] == "dyn"}
    assert levels == dict.fromkeys(CODES, "PASS")
