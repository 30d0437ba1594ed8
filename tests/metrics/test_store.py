"""Arrays on disk by key: nothing finished is made again, nothing half-written counts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from isodiff.metrics.store import Store, content_digest


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"square": np.arange(start, stop, dtype=float) ** 2, "pair": np.arange(2 * start, 2 * stop).reshape(-1, 2)}


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_chunks_of_any_size_give_the_same_rows(tmp_path: Path, size: int) -> None:
    made = Store(tmp_path).chunks(rows, 10, size=size, what="rows")
    for name, expected in rows(0, 10).items():
        np.testing.assert_array_equal(made[name], expected)


def test_an_interrupted_run_redoes_nothing_that_was_finished(tmp_path: Path) -> None:
    calls: list[int] = []

    def dying(start: int, stop: int) -> dict[str, np.ndarray]:
        if start == 6 and len(calls) < 4:
            calls.append(-1)
            raise KeyboardInterrupt
        calls.append(start)
        return rows(start, stop)

    store = Store(tmp_path, seed=0)
    with pytest.raises(KeyboardInterrupt):
        store.chunks(dying, 10, size=2, what="rows")
    assert calls == [0, 2, 4, -1]
    resumed = store.chunks(dying, 10, size=2, what="rows")
    assert calls == [0, 2, 4, -1, 6, 8]
    np.testing.assert_array_equal(resumed["square"], rows(0, 10)["square"])


def test_a_larger_sample_keeps_the_smaller_one(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(start: int, stop: int) -> dict[str, np.ndarray]:
        calls.append(start)
        return rows(start, stop)

    store = Store(tmp_path)
    store.chunks(counted, 4, size=2)
    store.chunks(counted, 8, size=2)
    assert calls == [0, 2, 4, 6]


def test_another_key_or_scope_is_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = store.scoped(model="a").get(lambda: {"x": np.zeros(1)}, seed=0)
    other_scope = store.scoped(model="b").get(lambda: {"x": np.ones(1)}, seed=0)
    other_key = store.scoped(model="a").get(lambda: {"x": np.full(1, 2.0)}, seed=1)
    assert [one["x"][0], other_scope["x"][0], other_key["x"][0]] == [0, 1, 2]
    assert store.scoped(model="a").get(lambda: {"x": np.full(1, 9.0)}, seed=0)["x"][0] == 0


def test_a_key_may_not_repeat_the_scope(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is already in the scope"):
        Store(tmp_path, model="a").get(lambda: rows(0, 1), model="b")


def test_without_a_folder_nothing_is_kept() -> None:
    values = iter([0.0, 1.0])
    store = Store()
    assert [store.get(lambda: {"x": np.array(next(values))})["x"] for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_entry_is_made_again_and_said_so(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    store.get(lambda: rows(0, 3), seed=0)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage)
    with pytest.warns(UserWarning, match="damaged"):
        again = store.get(lambda: rows(0, 3), seed=0)
    np.testing.assert_array_equal(again["square"], rows(0, 3)["square"])
    with np.load(path) as file:
        assert set(file) == {"square", "pair"}


def test_a_full_disk_is_named_with_a_remedy_and_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    store.get(lambda: rows(0, 3), seed=0)
    monkeypatch.setattr("isodiff.metrics.store.os.replace", full)
    with pytest.raises(OSError, match=r"no space left for 0\.0 MB in the cache .* --cache"):
        store.get(lambda: rows(0, 3), seed=1)
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .* choose another folder"):
        Store(tmp_path / "file" / "cache").get(lambda: rows(0, 3))


@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 0), (-3, 2)])
def test_no_rows_or_no_size_is_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Store().chunks(rows, count, size=size)


def test_a_digest_sees_values_shapes_types_and_order() -> None:
    a = np.arange(6.0)
    digests = {
        content_digest(a),
        content_digest(a.reshape(2, 3)),
        content_digest(a.astype(np.float32)),
        content_digest(a + 1),
        content_digest(a, "x"),
        content_digest("x", a),
    }
    assert len(digests) == 6
    assert content_digest(a.reshape(2, 3).T.copy().T) == content_digest(a.reshape(2, 3))  # the layout is not content
