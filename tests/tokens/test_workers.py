"""Worker processes: all jobs are done, failures are reported, nothing hangs."""

import os
import signal
from pathlib import Path

import pytest

from slm.errors import SlmError, UserError
from slm.tokens.workers import Workers


def double(number: int) -> int:
    return 2 * number


def process_id(_: int) -> int:
    return os.getpid()


def refuse(path: Path) -> None:
    path.touch()
    raise UserError(f"not {path.name}")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        die(0)
    return path.name


@pytest.mark.parametrize("count", [0, 2])
def test_every_job_is_done_once(count: int) -> None:
    with Workers(count) as workers:
        assert sorted(workers.spread(double, range(20))) == [(i, 2 * i) for i in range(20)]
        first = {result for _, result in workers.spread(process_id, range(8))}
        second = {result for _, result in workers.spread(process_id, range(8))}
    assert len(first | second) <= max(1, count), "processes are kept from one round to the next"
    assert (os.getpid() in first) == (count == 0)


def test_an_error_is_raised_and_ends_the_rest(tmp_path: Path) -> None:
    jobs = [tmp_path / str(number) for number in range(10_000)]
    with Workers(1) as workers, pytest.raises(UserError, match=r"not \d+"):
        list(workers.spread(refuse, jobs))
    assert 1 <= len(list(tmp_path.iterdir())) < 1000


def test_leaving_early_does_not_hang() -> None:
    with Workers(2) as workers:
        results = workers.spread(double, range(10_000))
        job, result = next(results)
    assert result == 2 * job


def test_a_process_killed_once_is_replaced(tmp_path: Path) -> None:
    jobs = [tmp_path / name for name in "abc"]
    with Workers(2) as workers:
        assert sorted(workers.spread(die_once, jobs)) == [(job, job.name) for job in jobs]


def test_a_process_killed_twice_names_its_job() -> None:
    with Workers(1) as workers, pytest.raises(SlmError, match=r"^7: .* killed, twice"):
        list(workers.spread(die, [7]))
