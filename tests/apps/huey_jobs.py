"""Huey: tasks, a retry, a delay, a periodic task, a lock, a priority; the consumer runs in this process."""

import time

from connection import TENANT, URL, until
from huey import PriorityRedisHuey, crontab
from huey.exceptions import TaskException

huey = PriorityRedisHuey("jobs", url=URL)
ran = []


@huey.task()
def greet(tenant):
    assert tenant == TENANT, f"a task of {tenant}"
    return f"hello {tenant}"


@huey.task(retries=2)
def flaky(tenant):
    ran.append(tenant)
    if len(ran) < 3:
        raise ValueError("not yet")
    return len(ran)


@huey.task()
@huey.lock_task("only-one")
def locked(tenant):
    return tenant


@huey.task()
def note(what):
    order.append(what)


@huey.periodic_task(crontab(minute="*"))
def every_minute():
    pass


def succeeded(result):
    """Each attempt leaves its outcome in the place of the one before."""
    result.reset()
    try:
        return result.get(preserve=True) == 3
    except TaskException:
        return False


order = []
for priority in (1, 9, 5):
    note((TENANT, priority), priority=priority)
assert huey.pending_count() == 3

consumer = huey.create_consumer(workers=1, periodic=True, initial_delay=0.05, scheduler_interval=1)
consumer.start()
try:
    until(lambda: len(order) == 3, "the notes")
    assert order == [(TENANT, 9), (TENANT, 5), (TENANT, 1)], order
    results = [greet(TENANT) for _ in range(20)]
    assert [result.get(blocking=True, timeout=8) for result in results] == [f"hello {TENANT}"] * 20
    assert locked(TENANT).get(blocking=True, timeout=8) == TENANT
    result = flaky(TENANT)
    until(lambda: succeeded(result), "the third attempt")
    start = time.monotonic()
    assert greet.schedule((TENANT,), delay=1).get(blocking=True, timeout=8) == f"hello {TENANT}"
    assert time.monotonic() - start >= 1
    wrong = greet("nobody")
    try:
        wrong.get(blocking=True, timeout=8)
        raise SystemExit("a task of nobody ran")
    except TaskException as error:
        assert "a task of nobody" in str(error)
finally:
    consumer.stop(graceful=True)
assert ran == [TENANT] * 3
assert huey.pending_count() == 0 and huey.scheduled_count() == 0
huey.flush()
