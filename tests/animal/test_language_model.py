"""Sampling and scoring with real models of transformers and adapters of peft: GPT-2 and Llama, tiny, random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.errors import UsageError
from engine.loop.sharding import _separate_blocks
from models.animal.language_model import (
    Sampling,
    cache_name,
    log_probabilities,
    prefill,
    rollout,
    sample_tokens,
    score,
)
from models.animal.operations import sizes_of
from tasks.animal.base import load_base

LENGTH = 9


def test_a_token_is_drawn_by_its_share() -> None:
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().expand(1000, 4)
    draws = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(sample_tokens(logits, draws, Sampling()), minlength=4).tolist()
    assert counts == [100, 200, 0, 700]
    hot = torch.bincount(sample_tokens(logits, draws, Sampling(temperature=2.0)), minlength=4) / 1000
    expected = torch.tensor([0.1, 0.2, 0.0, 0.7]).sqrt()
    assert torch.allclose(hot, expected / expected.sum(), atol=0.002)
    top = torch.bincount(sample_tokens(logits, draws, Sampling(top_k=2)), minlength=4).tolist()
    assert top == pytest.approx([0, 222, 0, 778], abs=1)
    assert torch.bincount(sample_tokens(logits, draws, Sampling(top_p=0.69)), minlength=4).tolist() == [0, 0, 0, 1000]
    assert torch.bincount(sample_tokens(logits, draws, Sampling(top_p=0.71)), minlength=4)[0] == 0
    assert sample_tokens(logits[:1], torch.tensor([1 - 1e-12]).double(), Sampling()).tolist() == [3]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """With adapters that are not zero."""
    pytest.importorskip("peft", reason="pip install -e '.[animal]'")
    from models.animal.adapter import LoraLM
    from models.animal.config import LoraConfig
    from tasks.animal.base import load_base
    from tests.animal.tiny import write

    folder = write(tmp_path_factory.mktemp("model") / request.param, request.param)
    torch.manual_seed(0)
    made = LoraLM(
        LoraConfig(lora_r=4, lora_dropout=0.3), load_base("x", str(folder), torch.float32), auto_dtype=torch.float32
    )
    for param in made.parameters():
        param.data += 0.3 * torch.randn_like(param)
    made.folder = folder
    return made


PROMPT = torch.tensor([7, 22])


def sampled(model, rows: int, seed: int = 1, **kwargs):
    draws = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ends = torch.zeros(model.base.model.config.vocab_size, dtype=torch.bool)
    ends[:4] = True
    return rollout(model.language_model, PROMPT, draws, Sampling(**kwargs), ends=ends, pad=0)


def test_the_first_token_follows_the_prompt_once(model) -> None:
    plain = model(PROMPT[None]).logits[0, -1]
    first, _ = prefill(model.language_model, PROMPT, 3)
    assert torch.allclose(first, plain.expand(3, -1), atol=1e-6)


def test_scores_are_those_of_the_generation(model) -> None:
    ids, logp = sampled(model, 12)
    mask = ((ids < 4).long().cumsum(-1) - (ids < 4).long()) == 0
    assert 1 < mask.sum() < mask.numel()
    with torch.no_grad():
        scores = score(model.language_model, PROMPT, ids)
    assert (scores - logp)[mask].abs().max() < 1e-5
    assert not logp[~mask].any()
    tempered, logp = sampled(model, 12, temperature=0.5)
    with torch.no_grad():
        scores = score(model.language_model, PROMPT, tempered)
    keep = logp != 0
    assert (scores - logp)[keep].abs().max() < 1e-5  # of temperature 1 all the same


def test_batch_mates_and_padding_change_nothing(model) -> None:
    ids, _ = sampled(model, 8)
    alone = torch.cat([sampled(model, 8)[0][row : row + 1] for row in range(8)])
    assert torch.equal(ids, alone)
    with torch.no_grad():
        together = score(model.language_model, PROMPT, ids)
        each = torch.cat([score(model.language_model, PROMPT, ids[row : row + 1]) for row in range(8)])
        assert (together - each).abs().max() < 1e-5
        # prompts of different lengths, padded on the left, one beside the other
        longer = torch.tensor([3, 9, 7, 22])
        tokens = torch.stack([torch.cat((torch.tensor([5, 5]), PROMPT, ids[0])), torch.cat((longer, ids[1]))])
        real = torch.ones_like(tokens).bool()
        real[0, :2] = False
        places = (real.cumsum(-1) - 1).clamp(min=0)  # those of real tokens: GPT-2 has learned positions
        output = model(tokens, attention_mask=real.long(), position_ids=places)
        padded = log_probabilities(output.logits[:, -LENGTH - 1 : -1], tokens[:, -LENGTH:])
        apart = [score(model.language_model, PROMPT, ids[:1]), score(model.language_model, longer, ids[1:2])]
        assert (padded - torch.cat(apart)).abs().max() < 1e-5


def test_the_shared_prompt_gives_the_gradient_of_the_plain_pass(model) -> None:
    ids, _ = sampled(model, 6)
    weights = torch.randn(6, LENGTH, generator=torch.Generator().manual_seed(2))
    gradients = []
    for shared in (True, False):
        if shared:
            logp = score(model.language_model, PROMPT, ids)
        else:
            whole = torch.cat((PROMPT.expand(6, -1), ids), 1)
            logp = log_probabilities(model(whole).logits[:, len(PROMPT) - 1 : -1], ids)
        gradients.append(torch.autograd.grad((weights * logp).sum(), [*model.parameters()]))
    assert all((a - b).abs().max() < 1e-4 * b.abs().max() for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def test_without_adapters_it_is_its_base_and_gradients_see_no_dropout(model) -> None:
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    ids, _ = sampled(model, 4)
    with torch.no_grad():
        model.train()
        with model.without_adapters():
            assert torch.equal(model(ids).logits, base(ids).logits)
        trained = model(ids).logits
        model.eval()
        assert torch.equal(model(ids).logits, trained)
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)


def test_only_the_adapters_are_its_parameters_under_the_names_of_peft(model) -> None:
    peft = pytest.importorskip("peft")
    stored = peft.get_peft_model_state_dict(model.peft)
    own = model.state_dict()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in own)
    assert not any(param.requires_grad for name, param in model.peft.named_parameters() if "lora_" not in name)


def test_the_saved_adapter_is_the_model(model, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model.folder), tmp_path)
    with torch.no_grad():
        assert (again(PROMPT[None]).logits - model(PROMPT[None]).logits).abs().max() < 1e-6
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token == "<end>"


def test_operations_are_those_that_torch_counts(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every multiplication of the real passes; attention as plain products, which the counter knows."""
    monkeypatch.setattr(model.language_model.config, "_attn_implementation", "eager")
    assert [type(block).__name__ for block in model.blocks()] in (["GPT2Block"] * 2, ["LlamaDecoderLayer"] * 2)
    assert _separate_blocks(model) == []  # parallel=fsdp cuts the adapters alone
    sizes, rows, prompt = sizes_of(model.language_model, model.blocks()), 6, torch.tensor([7, 22, 9, 4, 12])
    ids, ends = torch.randint(2, 20, (rows, LENGTH)), torch.zeros(25, dtype=torch.bool)

    def counted(work) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def by_base() -> None:
        with model.without_adapters(), torch.no_grad():
            score(model.language_model, prompt, ids)

    length = (rows, LENGTH, len(prompt))
    draws = torch.rand(rows, LENGTH)
    sampled = counted(lambda: rollout(model.language_model, prompt, draws, Sampling(), ends=ends, pad=0))
    assert sampled == sizes.sampling(*length)
    assert counted(by_base) == sizes.scoring(*length, adapted=False)
    with torch.no_grad():
        own = counted(lambda: score(model.language_model, prompt, ids))
    assert own == sizes.scoring(*length)
    trained = counted(lambda: score(model.language_model, prompt, ids).sum().backward())
    # the input of the first block needs no gradient: that of the layers which read it is counted and never made
    first = {"GPT2Block": (32 * 96, 4 * 32), "LlamaDecoderLayer": (32 * 32 + 2 * 32 * 16, 3 * 4 * 32)}
    unread = 2 * (rows * (LENGTH - 1) + len(prompt)) * sum(first[type(model.blocks()[0]).__name__])
    assert trained == sizes.training(*length) - unread
    monkeypatch.setattr(model, "lengths", (len(prompt), LENGTH))
    assert model.flops(rows) == {
        "train": sampled + own + counted(by_base) + trained + unread,
        "eval": sampled + own + counted(by_base),
    }
    monkeypatch.setattr(model, "replayed", 0.5)  # 3 rows of the buffer are scored and trained on, not sampled
    more = (rows + 3, *length[1:])
    both = sizes.scoring(*more) + sizes.scoring(*more, adapted=False)
    assert model.flops(rows) == {
        "train": sampled + both + sizes.training(*more),
        "eval": sampled + own + counted(by_base),
    }
    for param in model.parameters():
        param.grad = None


def test_layers_to_adapt_are_found_in_every_architecture(model) -> None:
    from models.animal.adapter import lora_targets
    from tasks.animal.base import load_base

    expected = {
        "GPT2LMHeadModel": ["attn.c_attn", "attn.c_proj"],
        "LlamaForCausalLM": [f"self_attn.{name}_proj" for name in "koqv"],
    }[type(model.base.model).__name__]
    assert sorted(model.peft.peft_config["default"].target_modules) == expected
    plain = load_base("x", str(model.folder), torch.float32).model
    assert lora_targets(plain) == expected
    assert lora_targets(plain, expected[:1]) == expected[:1]
    with pytest.raises(ValueError, match=r"arch\.lora_target_modules: no layer's name ends in nope; there are "):
        lora_targets(plain, ["nope"])
    assert cache_name(model.language_model) in ("cache", "past_key_values")


def test_a_damaged_base_is_refused_in_one_line(model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(name: str, changes: dict[str, object], cut: int = 0, source: Path = Path(model.folder)) -> str:
        folder = shutil.copytree(source, tmp_path / name)
        config, weights = folder / "config.json", folder / "model.safetensors"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        weights.write_bytes(weights.read_bytes()[: -cut or None])
        with pytest.raises(UsageError) as caught:
            load_base(name, str(folder), torch.float32)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "model_name_or_path=cut cannot be loaded by transformers: " in refusal("cut", {}, cut=100)
    layers = next(key for key in ("n_layer", "num_hidden_layers") if hasattr(model.base.model.config, key))
    assert " weight(s) that its config.json asks for are missing " in refusal("deeper", {layers: 3})
    assert " weight(s) that its config.json asks for are missing " in refusal("wider", {"vocab_size": 99})
    folder = shutil.copytree(model.folder, tmp_path / "not_finite")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    key = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    tensors[key].view(-1)[-1] = torch.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "holds numbers that are not finite" in refusal("again", {}, source=folder)
    folder = shutil.copytree(model.folder, tmp_path / "shallower")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {layers: 1}))
    load_base("shallower", str(folder), torch.float32)
    assert "warning: model_name_or_path=shallower: its config.json has no place for " in capsys.readouterr().out
