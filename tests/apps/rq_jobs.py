"""RQ: jobs that a worker runs, that fail and are retried, that are scheduled, and a dependency; the worker forks for each job."""

import datetime
import time

import redis
import rq
from connection import LOGIN, TENANT

from rq_tasks import fail, greet, join

connection = redis.Redis(**LOGIN)
queue = rq.Queue("jobs", connection=connection)

first = queue.enqueue(greet, TENANT)
second = queue.enqueue(greet, TENANT, depends_on=first)
last = queue.enqueue(join, first.id, second.id, TENANT, depends_on=[first, second])
broken = queue.enqueue(fail, TENANT, retry=rq.Retry(max=1))
later = queue.enqueue_in(datetime.timedelta(seconds=1), greet, TENANT)
assert later.id in queue.scheduled_job_registry.get_job_ids()

worker = rq.Worker([queue], connection=connection, name="worker")
worker.work(burst=True, logging_level="ERROR")
time.sleep(1.1)
worker = rq.Worker([queue], connection=connection, name="worker")
worker.work(burst=True, with_scheduler=True, logging_level="ERROR")
deadline = time.monotonic() + 5
while later.get_status(refresh=True) != "finished":
    assert time.monotonic() < deadline, later.get_status()
    rq.SimpleWorker([queue], connection=connection).work(burst=True, logging_level="ERROR")

for job in (first, second, later):
    assert job.return_value(refresh=True) == f"hello {TENANT}", job.return_value()
assert last.return_value(refresh=True) == [f"hello {TENANT}"] * 2
assert broken.get_status(refresh=True) == "failed"
assert broken.latest_result().exc_string.rstrip().endswith(f"broken for {TENANT}")
assert set(queue.finished_job_registry.get_job_ids()) == {first.id, second.id, last.id, later.id}
assert queue.failed_job_registry.get_job_ids() == [broken.id]
assert queue.count == 0
assert rq.Queue.all(connection=connection) == [queue]
