"""ARC symmetries, names, tokens, crops and hashes: the public code's numbers, and plain loops as the second opinion."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dataset.arc.augment import (
    IDENTITY,
    INVERSE,
    Augmentation,
    dihedral,
    grid_hash,
    grid_keys,
    inverse_dihedral,
    parse_name,
    transform,
    undo_all,
)
from dataset.arc.tokens import crop, crop_all, crop_sizes, to_tokens

SMALL = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)


@pytest.fixture
def published(golden) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and facts that the public code produced."""
    return np.load(golden("arc_codec/codec.npz")), json.loads(golden("arc_codec/meta.json").read_text())


@pytest.fixture(scope="module")
def grids() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Sixty random grids of all shapes up to 7x7 as canvases, and one by one."""
    generator = np.random.default_rng(0)
    heights, widths = generator.integers(1, 8, 60), generator.integers(1, 8, 60)
    canvases = np.zeros((60, 7, 7), dtype=np.uint8)
    one_by_one = []
    for canvas, height, width in zip(canvases, heights, widths, strict=True):
        canvas[:height, :width] = generator.integers(0, 10, (height, width))
        one_by_one.append(canvas[:height, :width].copy())
    return canvases, heights, widths, one_by_one


def test_transforms_of_the_public_code(published):
    arrays, _ = published
    for tid in range(8):
        assert (dihedral(arrays["grid"], tid) == arrays[f"dihedral{tid}"]).all()
        assert (inverse_dihedral(arrays["grid"], tid) == arrays[f"inverse{tid}_of_grid"]).all()
        assert (inverse_dihedral(dihedral(SMALL, tid), tid) == SMALL).all()


def test_transforms_of_a_small_grid():
    assert dihedral(SMALL, 1).tolist() == [[3, 6], [2, 5], [1, 4]]
    assert dihedral(SMALL, 3).tolist() == [[4, 1], [5, 2], [6, 3]]
    assert dihedral(SMALL, 6).tolist() == [[1, 4], [2, 5], [3, 6]]
    assert dihedral(SMALL, 7).tolist() == [[6, 3], [5, 2], [4, 1]]


def test_many_grids_as_one_by_one(grids):
    canvases, heights, widths, one_by_one = grids
    tids = np.arange(len(canvases)) % 8
    out, high, wide = transform(canvases, heights, widths, tids)
    for number, grid in enumerate(one_by_one):
        expected = dihedral(grid, tids[number])
        assert (high[number], wide[number]) == expected.shape
        assert (out[number, : high[number], : wide[number]] == expected).all()
        assert out[number].sum() == expected.sum()  # nothing outside
    back, *sizes = transform(out, high, wide, INVERSE[tids])
    assert (back == canvases).all()
    assert (np.array(sizes) == [heights, widths]).all()


def test_augmented_and_undone(published, grids):
    arrays, meta = published
    task, augmentation = parse_name(meta["inverse_aug"]["name"])
    assert task == meta["inverse_aug"]["base"]
    assert augmentation.name(task) == meta["inverse_aug"]["name"]
    assert (augmentation.undo(arrays["inverse_aug_in"]) == arrays["inverse_aug_out"]).all()
    for number, name in enumerate(meta["aug_names_npseed4"]):
        assert (parse_name(name)[1].apply(arrays["grid"]) == arrays[f"aug{number}"]).all()
    _, augmentation = parse_name("abc|||t1|||0987654321")
    assert augmentation.undo(np.array([[1, 2], [3, 4], [5, 6]])).tolist() == [[5, 7, 9], [4, 6, 8]]


def test_many_undone_as_one_by_one(grids):
    canvases, heights, widths, one_by_one = grids
    generator = np.random.default_rng(1)
    augmentations = [
        Augmentation(int(generator.integers(8)), "".join(map(str, generator.permutation(10)))) for _ in one_by_one
    ]
    tids = np.array([a.tid for a in augmentations])
    out, high, wide = undo_all(canvases, heights, widths, tids, np.stack([a.table for a in augmentations]))
    for number, (augmentation, grid) in enumerate(zip(augmentations, one_by_one, strict=True)):
        expected = augmentation.undo(grid)
        assert (augmentation.apply(expected) == grid).all()
        assert (out[number, : high[number], : wide[number]] == expected).all()
        assert out[number].sum() == expected.sum()


def test_names():
    assert parse_name("007bbfb7") == ("007bbfb7", IDENTITY)
    for bad in (
        "a|||t8|||0123456789",
        "a|||t1|||0123456788",
        "a|||1|||0123456789",
        "a|||t1",
        "a|||t1|||0123456789|||b",
    ):
        with pytest.raises(ValueError, match="expected"):
            parse_name(bad)


def test_tokens_of_the_public_code(published):
    arrays, _ = published
    for name in ("in", "out"):
        grid = arrays["grid" if name == "in" else "out"]
        assert (to_tokens(grid) == arrays[f"seq_{name}"]).all()
    moved = arrays["seq_in_translated_npseed0"].reshape(30, 30)
    row, column = np.argwhere(moved >= 2)[0]
    assert (to_tokens(arrays["grid"], 30, row, column) == moved.ravel()).all()
    assert (to_tokens(arrays["out"], 30, row, column) == arrays["seq_out_translated_npseed0"]).all()
    assert (to_tokens(arrays["full30"]) == arrays["full30_seq"]).all()


def test_border_at_the_edges():
    assert to_tokens(SMALL, 4).reshape(4, 4).tolist() == [[3, 4, 5, 1], [6, 7, 8, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert to_tokens(SMALL, 4, 2, 1).reshape(4, 4).tolist() == [[0] * 4, [0] * 4, [0, 3, 4, 5], [0, 6, 7, 8]]
    with pytest.raises(ValueError, match=r"2x3 grid at \(0, 2\) does not fit a canvas of 4x4"):
        to_tokens(SMALL, 4, 0, 2)


def test_crops_of_the_public_code(published):
    arrays, _ = published
    assert (crop(arrays["seq_in"]) == arrays["crop_of_seq_in"]).all()
    assert (crop(arrays["full30_seq"]) == arrays["crop_of_full30"]).all()
    assert crop(arrays["crop_junk_in"]).shape == arrays["crop_junk_out"].shape
    assert crop(np.zeros(900, dtype=np.uint8)).shape == (0, 0)


def naive_crop_size(canvas: np.ndarray) -> tuple[int, int]:
    best, width = (0, 0), canvas.shape[1]
    for height in range(1, len(canvas) + 1):
        for column in range(width):
            if not 2 <= canvas[height - 1, column] <= 11:
                width = column
                break
        if height * width > best[0] * best[1]:
            best = (height, width)
    return best


def test_crops_as_by_plain_loops():
    generator = np.random.default_rng(2)
    tokens = generator.choice(13, size=(400, 36), p=[0.04, 0.04, *[0.09] * 10, 0.02])
    heights, widths = crop_sizes(tokens)
    assert [*zip(heights, widths, strict=True)] == [naive_crop_size(row.reshape(6, 6)) for row in tokens]
    holes = np.full((3, 30, 30), 5)
    for canvas, hole in zip(holes, ((0, 5), (10, 0), (20, 20)), strict=True):
        canvas[hole] = 1
    sizes = crop_sizes(holes.reshape(3, 900))
    assert [*zip(*sizes, strict=True)] == [(30, 5), (10, 30), (20, 30)]
    canvases, high, wide = crop_all(tokens)
    assert all(canvas[h:].sum() + canvas[:, w:].sum() == 0 for canvas, h, w in zip(canvases, high, wide, strict=True))


def test_hashes(published, grids):
    arrays, meta = published
    assert grid_hash(arrays["grid"]) == meta["hashes"]["grid"]
    assert grid_hash(arrays["out"]) == meta["hashes"]["out"]
    assert grid_hash(SMALL) == "8a85482c8c93e41992c7fef9efca7b25d8e75bcc87bedf3e5f203700a34e9a6a"


def test_keys_tell_grids_apart_as_hashes_do(grids):
    canvases, heights, widths, one_by_one = grids
    keys = [tuple(key) for key in grid_keys(canvases, heights, widths)]
    assert (
        len({*zip(keys, map(grid_hash, one_by_one), strict=True)}) == len({*keys}) == len({*map(grid_hash, one_by_one)})
    )
    wider = np.zeros((60, 9, 9), dtype=np.uint8)
    wider[:, :7, :7] = canvases
    assert (grid_keys(wider, heights, widths) == grid_keys(canvases, heights, widths)).all()
    none = np.zeros(60, dtype=np.int64)
    assert len({tuple(key) for key in grid_keys(canvases, none, none)}) == 1


def test_no_grids_at_all():
    none, sizes = np.zeros((0, 5, 5), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    assert grid_keys(none, sizes, sizes).shape == (0, 2)
    assert undo_all(none, sizes, sizes, sizes, np.zeros((0, 10), dtype=np.uint8))[0].shape == (0, 5, 5)
    assert crop_all(np.zeros((0, 25), dtype=np.uint8))[0].shape == (0, 5, 5)
