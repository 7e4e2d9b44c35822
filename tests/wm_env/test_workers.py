"""Workers: every job is done once all is well, and what happens where it is not."""

import multiprocessing
from contextlib import closing

import pytest

from tests.wm_env import jobs_for_workers as work
from wm_env.cores import usable_cores
from wm_env.jobs import Done, JobLostError, Lost, Progress, WorkersError
from wm_env.workers import connected_workers, run_jobs


def results(events):
    return {event.index: event.result for event in events if isinstance(event, Done)}


def test_every_job_is_done_with_what_they_share():
    events = list(run_jobs(work.square, 1, [2, 3, 4, 5], processes=2))
    assert results(events) == {0: 5, 1: 10, 2: 17, 3: 26}
    assert [event.index for event in events if isinstance(event, Progress)].count(2) == 1
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("how", "told"), [("SIGKILL", r"died, exit code -9"), ("SIGSTOP", "hung: silent for 8 s")]
)
def test_a_job_whose_process_dies_or_hangs_is_taken_over(tmp_path, how, told):
    jobs = [how, "nothing"]
    events = list(run_jobs(work.once, str(tmp_path), jobs, processes=1, patience=8.0))
    lost = [event for event in events if isinstance(event, Lost)]
    assert [event.index for event in lost] == [0] and lost[0].reason.endswith(told)
    done = results(events)
    assert set(done) == {0, 1} and str(done[0]) not in lost[0].reason
    assert multiprocessing.active_children() == []


def test_a_job_that_kills_every_worker_is_given_up():
    with pytest.raises(JobLostError, match="lost 3 times .*exit code 3") as caught:
        list(run_jobs(work.die, None, ["deadly"], processes=1))
    assert caught.value.index == 0


def test_what_a_job_raises_is_raised_with_the_workers_traceback():
    with pytest.raises(ValueError, match="7 is no good") as caught:
        list(run_jobs(work.fail, None, [7], processes=1))
    assert "jobs_for_workers.py" in caught.value.__notes__[0]


def test_leaving_early_stops_the_processes(tmp_path):
    with closing(run_jobs(work.wait, str(tmp_path), [0, 1], processes=2)) as events:
        next(events)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_node_of_a_ray_cluster_may_die(tmp_path, ray_of_two_nodes):
    jobs, done, lost, killed = list(range(4)), [], [], False
    with closing(run_jobs(work.wait, str(tmp_path), jobs, ray=ray_of_two_nodes.address)) as events:
        for event in events:
            if isinstance(event, Done):
                done.append((event.index, event.result))
            if isinstance(event, Lost):
                lost.append(event.index)
                (tmp_path / "go").touch()
            if not killed and len(list(tmp_path.glob("begun-*"))) == 2:
                killed = True
                ray_of_two_nodes.kill_second_node()
    assert sorted(done) == [(job, job) for job in jobs] and len(lost) == 1


def test_workers_are_as_many_as_processes_or_cores():
    with connected_workers(3) as three, connected_workers() as cores:
        assert (three, cores) == (3, usable_cores())


@pytest.mark.slow
def test_a_ray_cluster_that_is_not_there_is_named():
    pytest.importorskip("ray")
    with pytest.raises(WorkersError, match=r"no Ray cluster at '127.0.0.1:9'"):
        next(run_jobs(work.square, 0, [1], ray="127.0.0.1:9"))
