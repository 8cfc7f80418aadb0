"""Device, dtype and attention choices, with CUDA and mps faked: the reason is part of the answer."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from engine import device
from engine.device import _packed, staged
from engine.errors import UsageError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def make(*, cuda: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "GPU X")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("asked", "hardware", "expected", "dtype", "reason"),
    [
        ("auto", {}, "cpu", torch.float32, "no GPU found"),
        ("auto", {"cuda": 1}, "cuda:0", torch.bfloat16, "CUDA found"),
        ("auto", {"mps": True}, "mps", torch.float32, "Apple GPU found"),
        ("auto", {"cuda": 1, "bf16": False}, "cuda:0", torch.float32, "lacks bfloat16"),
        ("cpu", {"cuda": 1}, "cpu", torch.float32, "device=cpu was asked for"),
        ("cuda:1", {"cuda": 2}, "cuda:1", torch.bfloat16, "GPU X"),
    ],
)
def test_choice(machine, asked: str, hardware: dict, expected: str, dtype: torch.dtype, reason: str) -> None:
    machine(**hardware)
    choice = device.choose_device(asked)
    assert str(choice.device) == expected
    assert choice.dtype is dtype
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("asked", "hardware"),
    [
        ("gpu", {}),
        ("cpu:1", {}),
        ("cuda:x", {"cuda": 1}),
        ("cuda:3", {"cuda": 2}),
        ("cuda:", {"cuda": 1}),
        ("cuda:²", {"cuda": 1}),
        ("", {}),
        ("CUDA", {"cuda": 1}),
        ("mps:0", {"mps": True}),
    ],
)
def test_nonsense_is_refused(machine, asked: str, hardware: dict) -> None:
    machine(**hardware)
    with pytest.raises(UsageError, match=r"device=|cuda:3"):
        device.choose_device(asked)


@pytest.mark.parametrize(
    ("asked", "hardware", "reason"),
    [
        ("cuda", {}, "device=cuda: "),
        ("cuda:7", {}, "device=cuda:7: "),
        ("mps", {"cuda": 1}, "no Apple GPU"),
        ("cuda", {"mps": True}, "device=auto"),
    ],
)
def test_a_device_that_is_not_here_is_refused(machine, asked: str, hardware: dict, reason: str) -> None:
    machine(**hardware)
    with pytest.raises(UsageError) as caught:
        device.choose_device(asked)
    assert reason in str(caught.value)
    assert "device=cpu the CPU" in str(caught.value)


def test_no_gpu_says_why(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="built without CUDA"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=''"):
        device.choose_device("cuda")


def test_more_ranks_than_gpus_are_refused_by_all_of_them(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        for asked in ("auto", "cuda"):
            with pytest.raises(UsageError, match=r"4 processes .* 2 GPU"):
                device.choose_device(asked)


def test_ranks_take_their_own_gpu(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert str(device.choose_device("auto").device) == "cuda:2"
    with pytest.raises(UsageError, match="all ranks on one GPU"):
        device.choose_device("cuda:1")


def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="attention=auto"):
        device.check_attention("flash", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"pip install -e '\.\[flash\]'"):
        device.check_attention("flash", torch.device("cuda"))
    device.check_attention("math", torch.device("cpu"))


def test_seed_fixes_the_weights() -> None:
    device.prepare_process(seed=3, threads=None, deterministic=False)
    first = torch.rand(4)
    device.prepare_process(seed=3, threads=None, deterministic=False)
    assert torch.equal(first, torch.rand(4))


def test_a_buffer_of_many_tensors_gives_back_each() -> None:
    arrays = {
        "inputs": np.arange(15, dtype=np.int32).reshape(5, 3),
        "flags": np.array([True, False, True]),
        "keys": torch.arange(4) << 60,
        "none": np.zeros((0, 3), dtype=np.float32),
        "exploration": torch.rand(5, 2)[1:4],
    }
    tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    for given in (staged(arrays, torch.device("cpu")), _packed(tensors, torch.device("cpu"))):
        assert list(given) == list(arrays)
        for name, tensor in tensors.items():
            assert given[name].dtype == tensor.dtype
            assert torch.equal(given[name], tensor)


def test_pinned_memory_is_sent_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what CUDA is told, on a CPU: copied beside, waited for, then kept for the stream that reads it."""
    calls: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            calls.append(f"waits for {other}")

    @contextmanager
    def inside(stream: object):
        calls.append(f"on {stream}")
        yield
        calls.append("back")

    present = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(device, "_copy_stream", lambda device: "side")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append(f"kept {stream is present}"))
    buffer = torch.arange(8, dtype=torch.uint8)
    assert torch.equal(device._copy_async(buffer, torch.device("cpu")), buffer)
    assert calls == ["on side", "back", "waits for side", "kept True"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_each_of_many_batches_arrives_whole() -> None:
    """The device is far behind the host, so that a copy which is read too early, or memory of a batch which is used
    again too early, gives another sum."""
    gpu, size, rounds = torch.device("cuda", 0), 1 << 18, 300
    work = torch.randn(2048, 2048, device=gpu)
    sums = []
    for number in range(rounds):
        for _ in range(4):
            work = work @ work / work.norm()
        sent = staged({"tokens": torch.full((size,), number), "flag": torch.tensor([number])}, gpu)
        sums.append(sent["tokens"].sum() + sent["flag"].sum())
        del sent
    assert torch.stack(sums).tolist() == [number * (size + 1) for number in range(rounds)]
