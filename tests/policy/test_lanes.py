"""Work side by side: as if one piece came after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from betaflow.policy.lanes import side_by_side


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "jobs", "share"), [(1, 3, 1), (2, 3, 1), (4, 2, 2), (4, 1, 4)])
def test_results_come_in_order_and_torch_s_threads_are_shared_out(
    threads: int, jobs: int, share: int
) -> None:
    torch.set_num_threads(threads)
    found = side_by_side([lambda n=n: (n, torch.get_num_threads()) for n in range(jobs)])  # type: ignore[misc]
    assert found == [(n, share) for n in range(jobs)]
    assert torch.get_num_threads() == threads
    assert side_by_side([]) == []


def test_two_jobs_run_at_once_and_a_job_s_own_jobs_in_its_thread() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)  # broken unless two wait at it together

    def job() -> set[str]:
        both.wait()
        return set(side_by_side([lambda: threading.current_thread().name] * 2))

    first, second = side_by_side([job, job])
    assert len(first) == len(second) == 1
    assert first != second


def test_what_a_job_raises_is_raised_once_no_job_runs() -> None:
    torch.set_num_threads(2)
    ended = []
    begun = threading.Event()

    def wrong() -> None:
        assert begun.wait(30)
        raise ValueError("first")

    def right() -> None:
        begun.set()
        ended.append(float(torch.ones(1000, 1000).sum()))

    with pytest.raises(ValueError, match="first"):
        side_by_side([wrong, right])
    assert ended == [1e6]
    assert torch.get_num_threads() == 2


def test_gradients_of_shared_weights_are_those_of_one_thread() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64, requires_grad=True)
    inputs = [torch.randn(256, 64) for _ in range(6)]

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((x @ weight).tanh().square().sum(), weight)[0]

    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(side_by_side([lambda x=x: gradient(x) for x in inputs]))  # type: ignore[misc]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert weight.grad is None
