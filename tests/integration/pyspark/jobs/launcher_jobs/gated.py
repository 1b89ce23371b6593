"""Jobs that wait until a file exists."""

import os
import time

from launcher_jobs.work import Accepting


def wait(data):
    while not os.path.exists(data.get("gate")):
        time.sleep(0.02)


class Count(Accepting):
    def run_job(self, context, runtime, data):
        print("before the restart")
        wait(data)
        print("after the restart")
        return context.range(data.get("rows")).count()


class Stream(Accepting):
    def run_job(self, context, runtime, data):
        yield b"before" * 200_000
        wait(data)
        yield b"after"


class Value(Accepting):
    def run_job(self, context, runtime, data):
        return data.get("value")
