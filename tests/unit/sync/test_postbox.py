"""The PostBox: bounded, closable, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from gsync.sync.postbox import Closed, FileRequest, PostBox


def request(number: int, size: int = 1) -> FileRequest:
    return FileRequest(number.to_bytes(16, "big"), "N", bytes(16), b"", size)


def blocked(action: object) -> threading.Thread:
    """A thread that has begun a call which cannot return yet."""
    begun = threading.Event()

    def run() -> None:
        begun.set()
        action()  # type: ignore[operator]

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    return thread


def test_requests_come_out_in_order() -> None:
    box = PostBox(100, 1000, 100)
    sent = [request(i) for i in range(5)]
    for r in sent:
        box.append(r)
    assert box.take() == sent


def test_a_thread_takes_no_more_than_its_share() -> None:
    box = PostBox(100, 1000, 3)
    for i in range(5):
        box.append(request(i))
    assert [len(box.take()), len(box.take())] == [3, 2]


def test_a_thread_takes_no_more_than_half_the_bytes_and_at_least_one() -> None:
    box = PostBox(100, 1000, 100)
    for i in range(4):
        box.append(request(i, 250))
    assert [len(box.take()), len(box.take())] == [2, 2]
    box.append(request(9, 5000))
    assert len(box.take()) == 1


def test_an_empty_box_gives_nothing_to_whoever_does_not_wait() -> None:
    assert PostBox(100, 1000, 100).take(wait=False) == []


@pytest.mark.parametrize(("capacity", "capacity_bytes"), [(2, 1000), (100, 2)])
def test_a_full_box_makes_the_worker_wait_until_something_is_taken(capacity: int, capacity_bytes: int) -> None:
    box = PostBox(capacity, capacity_bytes, 100)
    box.append(request(1))
    box.append(request(2))
    worker = blocked(lambda: box.append(request(3)))
    taken = box.take()
    while len(taken) < 3:
        taken += box.take()
    worker.join()
    assert taken == [request(1), request(2), request(3)]


def test_closing_wakes_everyone_and_refuses_all_who_come() -> None:
    full, empty = PostBox(1, 1000, 100), PostBox(1, 1000, 100)
    full.append(request(1))
    refused: list[str] = []

    def expect_closed(name: str, action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except Closed:
            refused.append(name)

    threads = [blocked(lambda: expect_closed("append", lambda: full.append(request(2)))),
               blocked(lambda: expect_closed("take", empty.take))]
    full.close()
    empty.close()
    for thread in threads:
        thread.join()
    assert sorted(refused) == ["append", "take"]
    with pytest.raises(Closed):
        full.take(wait=False)
    with pytest.raises(Closed):
        full.append(request(3))
