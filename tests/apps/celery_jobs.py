"""Celery with Redis as broker and result backend: a task, a retry, a countdown, a chain, a chord, a revoked task; worker `-P solo`."""

import os
import subprocess
import sys
import time

from celery import Celery, chain, chord, group
from connection import TENANT, URL, until

app = Celery("celery_jobs", broker=URL, backend=URL)
app.conf.update(
    task_default_queue="jobs",
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=False,
    broker_transport_options={"visibility_timeout": 60},
)


@app.task
def greet(tenant):
    assert tenant == TENANT, f"a task of {tenant}"
    return f"hello {tenant}"


@app.task(bind=True, max_retries=2)
def flaky(self, tenant):
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return [tenant, self.request.retries]


@app.task
def shout(text):
    return text.upper()


@app.task
def gather(texts):
    return sorted(texts)


def scheduled():
    """What the worker holds back, each with its arguments; nothing also if it did not answer in time."""
    answers = app.control.inspect(timeout=0.5).scheduled() or {}
    assert set(answers) <= {"worker@local"}, answers
    return [(each["request"]["id"], each["request"]["args"]) for each in answers.get("worker@local", [])]


def main():
    result = greet.delay(TENANT)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_jobs", "worker", "-P", "solo", "-l", "WARNING", "-n", "worker@local"],
        cwd=os.path.dirname(os.path.abspath(__file__)),
    )
    try:
        hello = f"hello {TENANT}"
        assert result.get(timeout=9) == hello
        results = [greet.delay(TENANT) for _ in range(20)]
        assert [each.get(timeout=8) for each in results] == [hello] * 20
        assert flaky.delay(TENANT).get(timeout=8) == [TENANT, 2]
        start = time.monotonic()
        assert greet.apply_async((TENANT,), countdown=0.5).get(timeout=8) == hello
        assert time.monotonic() - start >= 0.5
        assert chain(greet.s(TENANT), shout.s())().get(timeout=8) == hello.upper()
        assert chord(group(greet.s(TENANT), shout.s(TENANT)), gather.s())().get(timeout=8) == sorted([hello, TENANT.upper()])
        # Remote control: publish/subscribe and a reply queue. One worker of this name for each tenant, and only ours answers.
        assert app.control.ping(timeout=1) == [{"worker@local": {"ok": "pong"}}]
        late = greet.apply_async((TENANT,), countdown=60)
        until(lambda: scheduled() == [(late.id, [TENANT])], "the task in the worker")
        late.revoke()
    finally:
        worker.terminate()
        code = worker.wait(timeout=10)
    assert code == 0, code


if __name__ == "__main__":
    main()
