"""What the RQ worker runs."""

import redis
import rq
from connection import LOGIN, TENANT


def greet(tenant):
    assert tenant == TENANT, f"a job of {tenant}"
    return f"hello {tenant}"


def join(first, second, tenant):
    assert tenant == TENANT, f"a job of {tenant}"
    connection = redis.Redis(**LOGIN)
    return [rq.job.Job.fetch(job, connection=connection).return_value() for job in (first, second)]


def fail(tenant):
    raise ValueError(f"broken for {tenant}")
