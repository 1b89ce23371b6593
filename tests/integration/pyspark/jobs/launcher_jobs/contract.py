"""The jobs of the launcher contract."""

import fcntl
import os
import subprocess
import sys
import time

from sparkjobserver.api import SparkJob, build_problems


class Echo(SparkJob):
    def validate(self, context, runtime, config):
        return config.get("value")

    def run_job(self, context, runtime, data):
        return data


class Print(SparkJob):
    def validate(self, context, runtime, config):
        return config

    def run_job(self, context, runtime, data):
        print(data["text"])
        print(data["error"], file=sys.stderr)


class Crash(SparkJob):
    def validate(self, context, runtime, config):
        return None

    def run_job(self, context, runtime, data):
        os._exit(3)


class Hold(SparkJob):
    def validate(self, context, runtime, config):
        return config

    def run_job(self, context, runtime, data):
        with open(data["lock"], "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            std = subprocess.DEVNULL if data.get("detached") else None
            subprocess.Popen(
                ["sleep", "3600"],
                pass_fds=[file.fileno()],
                start_new_session=True,
                stdin=std,
                stdout=std,
                stderr=std,
            )
            while not data.get("return", False):
                time.sleep(60)


class Raise(SparkJob):
    def validate(self, context, runtime, config):
        return config.get("message")

    def run_job(self, context, runtime, data):
        raise ValueError(data)


class Refuse(SparkJob):
    def validate(self, context, runtime, config):
        return build_problems([config.get("message")])

    def run_job(self, context, runtime, data):
        raise AssertionError("a refused job never runs")


class Endless(SparkJob):
    def validate(self, context, runtime, config):
        return None

    def run_job(self, context, runtime, data):
        while True:
            time.sleep(60)


class Stream(SparkJob):
    def validate(self, context, runtime, config):
        return config.get("chunks")

    def run_job(self, context, runtime, data):
        return (chunk.encode() for chunk in data)


class Astream(Stream):
    async def run_job(self, context, runtime, data):
        for chunk in data:
            yield chunk.encode()
