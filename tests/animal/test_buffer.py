"""The replay buffer, with a stand-in for KMeans: capacity, eviction, when clusters are fitted, labels that keep their meaning."""

from __future__ import annotations

import numpy as np
import pytest

from engine.checkpoint.state_tree import join_tree, split_tree
from engine.distributed import keyed_numpy
from tasks.animal.buffer import Entry, ReplayBuffer
from tasks.animal.clusters import align, best_kmeans, kmeans, nearest

REFITS = "pip install -e '.[animal]'"
"""Clusters that are fitted again are matched by scipy, which scikit-learn brings."""
CENTRES = np.eye(3, 4, dtype=np.float32)


def spread(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Stands for KMeans: the first k different points, in an order that depends on the seed."""
    distinct = np.unique(points.round(1), axis=0)[:k]
    return np.roll(distinct, seed, axis=0)


def buffer(**changes) -> ReplayBuffer:
    settings = {"capacity": 6, "n_clusters": 3, "update_every": 4, "min_samples": 3, "seed": 7, "fit": spread}
    return ReplayBuffer(("cat", "dog"), **{**settings, **changes})


def put(to: ReplayBuffer, option: str, kinds: list[int], step: int) -> list[int]:
    """Completions of the given kinds: a vector near that centre, their own text."""
    random = np.random.default_rng(step)
    vectors = CENTRES[kinds] + 0.01 * random.standard_normal((len(kinds), 4)).astype(np.float32)
    labels = to.assign(option, vectors).tolist()
    to.add(option, [Entry(f"{kind} {step} {i}", (kind, step), step) for i, kind in enumerate(kinds)], vectors)
    return labels


def test_clusters_are_fitted_when_they_are_due() -> None:
    pytest.importorskip("scipy", reason=REFITS)
    made = buffer()
    assert put(made, "cat", [0, 1], 0) == [-1, -1]
    assert not made.update("cat")  # fewer than min_samples
    put(made, "cat", [2], 1)
    assert made.update("cat")
    assert made.clusters() == [3, 0]
    assert sorted(put(made, "cat", [0, 1, 2], 2)) == [0, 1, 2]
    assert not made.update("cat")  # three new ones, every four
    put(made, "cat", [0], 3)
    assert made.update("cat")
    assert made.banks["cat"].fits == 2
    assert not made.update("dog")


def test_equal_texts_have_fewer_clusters() -> None:
    made = buffer()
    vectors = CENTRES[[0, 0, 1, 1]]
    made.add("cat", [Entry(f"text {kind}", (kind,), 0) for kind in (0, 0, 1, 1)], vectors)
    assert made.update("cat")
    assert made.clusters()[0] == 2
    made.add("dog", [Entry("same", (1,), 0)] * 5, CENTRES[[0] * 5])
    assert not made.update("dog")


def test_the_oldest_of_the_largest_cluster_goes_first() -> None:
    made = buffer()
    put(made, "cat", [0, 1, 2], 0)
    made.update("cat")
    put(made, "cat", [0, 0, 0, 0, 0], 1)
    kept = [entry.text for entry in made.banks["cat"].entries]
    assert kept == ["1 0 1", "2 0 2", "0 1 1", "0 1 2", "0 1 3", "0 1 4"]
    assert len(made.banks["cat"].vectors) == len(made.banks["cat"].labels) == 6
    first = buffer(capacity=2)
    put(first, "dog", [0, 1, 2], 0)
    assert [entry.text for entry in first.banks["dog"].entries] == ["1 0 1", "2 0 2"]  # no clusters: the oldest


def test_numbers_of_clusters_keep_their_meaning() -> None:
    pytest.importorskip("scipy", reason=REFITS)
    made = buffer(update_every=1)
    put(made, "cat", [0, 1, 2], 0)
    made.update("cat")
    before = made.assign("cat", CENTRES).tolist()
    for step in (1, 2, 3):
        put(made, "cat", [0, 1, 2], step)
        assert made.update("cat")
        assert made.assign("cat", CENTRES).tolist() == before
    shuffled = CENTRES[[2, 0]]
    assert (align(shuffled, CENTRES) == CENTRES[[0, 2]]).all()
    assert align(CENTRES, CENTRES[:2]).shape == (3, 4)


def test_numbers_follow_the_nearest_pairs_taken_together() -> None:
    """The closest pair first (0 and -0.4) would leave 1 to -0.6: 2.72 in squares, where the other order has 2.32."""
    pytest.importorskip("scipy", reason=REFITS)
    old, new = np.float32([[0], [1]]), np.float32([[-0.4], [-0.6]])
    assert align(new, old).tolist() == new[::-1].tolist()


def test_state_goes_through_a_checkpoint() -> None:
    pytest.importorskip("scipy", reason=REFITS)
    made, again = buffer(), buffer()
    for step, kinds in enumerate(([0, 1, 2], [1, 1, 0], [2, 0])):
        put(made, "cat", kinds, step)
        made.update("cat")
    tensors, tree = split_tree(made.state_dict())
    again.load_state_dict(join_tree(tree, tensors))
    for bank in (made, again):
        put(bank, "cat", [0, 2, 2], 9)
        bank.update("cat")
    left, right = made.state_dict(), again.state_dict()
    assert left["cat"].pop("vectors").equal(right["cat"].pop("vectors"))
    assert left["cat"].pop("centroids").equal(right["cat"].pop("centroids"))
    assert left == right


def test_an_option_with_too_few_samples_borrows_clusters_of_all() -> None:
    pytest.importorskip("scipy", reason=REFITS)
    made, alone = buffer(pooled=True, min_samples=4), buffer(min_samples=4)
    for one in (made, alone):
        put(one, "cat", [0, 1, 2], 0)
        put(one, "dog", [2], 0)
        assert not one.update("cat")
        assert one.update_pool() == (one is made)
    assert (made.clusters(), alone.clusters()) == ([3, 3], [0, 0])
    vectors = np.stack([vector for bank in made.banks.values() for vector in bank.vectors])
    centroids = spread(vectors, 3, 7 + 2000)  # of both options together
    for option, bank in made.banks.items():
        assert bank.labels == nearest(np.stack(bank.vectors), centroids).tolist()
        assert made.assign(option, CENTRES).tolist() == nearest(CENTRES, centroids).tolist()
    assert made.metrics()["options_pooled"] == 2
    assert "options_pooled" not in alone.metrics()
    again = buffer(pooled=True, min_samples=4)
    tensors, tree = split_tree({"banks": made.state_dict(), "pool": made.pool_state()})
    stored = join_tree(tree, tensors)
    again.load_state_dict(stored["banks"])
    again.load_pool_state(stored["pool"])
    for one in (made, again):
        assert not one.update_pool()  # not due: nothing has been added
        put(one, "cat", [1], 1)
        assert one.update("cat")  # has clusters of its own now, dog does not
        assert one.clusters() == [3, 3]
        put(one, "dog", [0, 2], 2)
        assert not one.update_pool()  # three new ones, every four
        put(one, "cat", [0], 3)
        assert one.update_pool()
        assert one.metrics()["options_pooled"] == 1
    assert made.pool_state()["centroids"].equal(again.pool_state()["centroids"])
    assert [bank.labels for bank in made.banks.values()] == [bank.labels for bank in again.banks.values()]
    own = made.banks["cat"].centroids
    assert (made.assign("cat", CENTRES) == nearest(CENTRES, own)).all()
    assert made.banks["dog"].labels == made.assign("dog", np.stack(made.banks["dog"].vectors)).tolist()


def test_draws_take_each_option_alike() -> None:
    made = buffer()
    put(made, "cat", [0, 0, 0, 1], 0)
    put(made, "dog", [2], 0)
    drawn = made.draw(keyed_numpy(0, "test"), 200)
    assert 70 < sum(option == "dog" for option, _, _ in drawn) < 130
    assert {entry.ids[0] for option, _, entry in drawn if option == "cat"} == {0, 1}
    assert drawn == made.draw(keyed_numpy(0, "test"), 200)
    assert buffer().draw(keyed_numpy(0, "test"), 5) == []


def test_figures() -> None:
    made = buffer()
    put(made, "cat", [0, 1, 2], 0)
    made.update("cat")
    assert made.metrics() == {
        "buffer_size/cat": 3,
        "cluster_entropy/cat": pytest.approx(np.log(3)),
        "buffer_size/dog": 0,
        "cluster_entropy/dog": 0,
    }


def test_kmeans_finds_the_clusters_and_depends_on_its_seed_only() -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")
    random = np.random.default_rng(0)
    points = (CENTRES[random.integers(0, 3, 60)] + 0.05 * random.standard_normal((60, 4))).astype(np.float32)
    centroids = kmeans(points, 3, 11)
    assert sorted(nearest(CENTRES, centroids).tolist()) == [0, 1, 2]
    assert centroids.dtype == np.float32
    assert (centroids == kmeans(points, 3, 11)).all()


def test_the_silhouette_finds_how_many_clusters_there_are() -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")
    random = np.random.default_rng(0)
    points = (CENTRES[random.integers(0, 3, 60)] + 0.05 * random.standard_normal((60, 4))).astype(np.float32)
    assert best_kmeans(2)(points, 6, 11).tolist() == kmeans(points, 3, 11).tolist()
    assert len(best_kmeans(4)(points, 6, 11)) == 4  # the fewest allowed are the best
    assert len(best_kmeans(2)(points[:2], 2, 11)) == 2  # as many as points: not defined
    made = buffer(n_clusters=6, capacity=60, fit=best_kmeans(2))
    made.add("cat", [Entry(f"text {row}", (row,), 0) for row in range(60)], points)
    assert made.update("cat")
    assert made.clusters() == [3, 0]
