"""The jobs of the launcher contract."""

import time

from sparkjobserver.api import SparkJob, build_problems


class Echo(SparkJob):
    def validate(self, context, runtime, config):
        return config.get("value")

    def run_job(self, context, runtime, data):
        return data


class Print(SparkJob):
    def validate(self, context, runtime, config):
        return config.get("text")

    def run_job(self, context, runtime, data):
        print(data)


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
