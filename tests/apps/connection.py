"""Where keyfence is and who this process is there."""

import os
import time

HOST = os.environ["KEYFENCE_HOST"]
PORT = int(os.environ["KEYFENCE_PORT"])
TENANT = os.environ["KEYFENCE_USERNAME"]
PASSWORD = os.environ["KEYFENCE_PASSWORD"]
LOGIN = {"host": HOST, "port": PORT, "username": TENANT, "password": PASSWORD}
URL = f"redis://{TENANT}:{PASSWORD}@{HOST}:{PORT}/0"


def until(done, what):
    """Waits until `done()` is true; fails after 8 s."""
    deadline = time.monotonic() + 8
    while not done():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)
