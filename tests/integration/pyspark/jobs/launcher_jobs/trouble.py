"""Jobs that do not end, or fail."""

import ctypes
import os
import shlex
import socket
import subprocess
import sys
import threading
import time

from launcher_jobs.work import Accepting


class BusyLoop(Accepting):
    def run_job(self, context, runtime, data):
        while True:
            pass


class Intruder(Accepting):
    """Writes to the connection between its process and the context's host."""

    def run_job(self, context, runtime, data):
        for name in os.listdir("/proc/self/fd"):
            try:
                connection = socket.socket(fileno=os.dup(int(name)))
                if connection.family == socket.AF_UNIX:
                    connection.sendall(data["bytes"].encode())
            except OSError:
                continue  # a file, or a socket that is not connected
        time.sleep(600)


class NativeCall(Accepting):
    """Blocks in C code, with signals held back."""

    def run_job(self, context, runtime, data):
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock all the while


class SleepingTasks(Accepting):
    def run_job(self, context, runtime, data):
        spark = getattr(context, "sparkContext", context)
        return spark.parallelize(range(4), 4).map(lambda _: time.sleep(600)).count()


class TasksAndACall(Accepting):
    """Runs tasks, while it waits in a call to the JVM that ignores interrupts."""

    def run_job(self, context, runtime, data):
        spark = context.sparkContext
        threading.Thread(
            target=lambda: spark.parallelize(range(2), 2).foreach(lambda _: time.sleep(600))
        ).start()
        server = spark._jvm.java.net.ServerSocket(0)
        print("port", server.getLocalPort(), flush=True)
        server.accept()
        time.sleep(600)


class ActiveTasks(Accepting):
    """The number of tasks that run, from the scheduler: Spark's status is up to a second late."""

    def run_job(self, context, runtime, data):
        running = context.sparkContext._jsc.sc().taskScheduler().runningTasksByExecutors().values().iterator()
        count = 0
        while running.hasNext():
            count += running.next()
        return count


class BusyTasks(Accepting):
    def run_job(self, context, runtime, data):
        def spin(_number):
            while True:
                pass

        spark = getattr(context, "sparkContext", context)
        return spark.parallelize(range(4), 4).map(spin).count()


class ThreadedTasks(Accepting):
    """Starts its Spark jobs on threads, under its own job group."""

    def run_job(self, context, runtime, data):
        def work():
            context.sparkContext.setJobGroup("mine", "mine")
            context.sparkContext.parallelize(range(2), 2).map(lambda _: time.sleep(600)).count()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Besieged(Accepting):
    """Counts while a stranger, who says nothing, is connected to its process's server for accumulators."""

    fresh_process = True

    def run_job(self, context, runtime, data):
        server = context.sparkContext._accumulatorServer
        with socket.socket(server.address_family) as stranger:
            stranger.connect(server.server_address)
            return context.sparkContext.parallelize(range(4), 2).map(str).count()


class LongPlan(Accepting):
    """Runs a query that the JVM plans for a while, before any task begins."""

    def run_job(self, context, runtime, data):
        from pyspark.sql import functions

        frame, total = context.range(0, 2, 1, 2), functions.col("id")
        for number in range(60):
            case = functions.when(total > number, functions.col("id") + number)
            frame = frame.withColumn(f"c{number}", case.otherwise(functions.lit(number)) * 2)
            total = total + functions.col(f"c{number}")
        sleep = functions.udf(lambda _: time.sleep(600), "long")
        query = frame.select(sleep("id") + total)
        print("planning")
        query.collect()


class LeavesTasks(Accepting):
    """Ends while a thread of it still has a Spark job running."""

    def run_job(self, context, runtime, data):
        spark = context.sparkContext
        rdd = spark.parallelize(range(2), 2).map(lambda _: time.sleep(600))
        threading.Thread(target=rdd.count, daemon=True).start()
        time.sleep(2)
        return "left"


class JvmSleep(Accepting):
    """Blocks inside calls to the JVM, on two threads."""

    def run_job(self, context, runtime, data):
        def sleep():
            context.sparkContext._jvm.java.lang.Thread.sleep(600_000)

        threading.Thread(target=sleep).start()
        sleep()


class JvmAccept(Accepting):
    """Waits in a call to the JVM that ignores interrupts, until someone connects."""

    def run_job(self, context, runtime, data):
        server = context.sparkContext._jvm.java.net.ServerSocket(0)
        print("port", server.getLocalPort(), flush=True)
        server.accept()


class JvmProcess(Accepting):
    """Starts a process with a child in the JVM, and reads what it prints, which no interrupt ends."""

    def run_job(self, context, runtime, data):
        jvm = context.sparkContext._jvm
        command = jvm.java.util.ArrayList()
        for word in ("sh", "-c", f"sleep 600 & echo $$ $! > '{data['path']}'; wait"):
            command.add(word)
        process = jvm.java.lang.ProcessBuilder(command).start()
        if data["read"]:
            process.getInputStream().read()
        time.sleep(600)


class JvmCalls(Accepting):
    """How many calls from Python in the JVM are in a frame with this text."""

    def run_job(self, context, runtime, data):
        stacks = context.sparkContext._jvm.java.lang.Thread.getAllStackTraces()
        texts = [str([str(frame) for frame in stacks[thread]]) for thread in stacks]
        return sum(data["frame"] in text and "py4j.ClientServerConnection" in text for text in texts)


class Exit(Accepting):
    def run_job(self, context, runtime, data):
        print("about to leave", file=sys.stderr)
        os._exit(data.get("status", 3))


class ClosesOutput(Accepting):
    """Closes its output, as daemons do."""

    def run_job(self, context, runtime, data):
        print("before it closed")
        sys.stdout.close()
        os.close(1)
        os.close(2)
        return "closed"


class Segfault(Accepting):
    def run_job(self, context, runtime, data):
        ctypes.string_at(0)


class SysExit(Accepting):
    def run_job(self, context, runtime, data):
        sys.exit("not today")


class MemoryHog(Accepting):
    """Exceeds its memory limit: a limit of its own stands in for that of the machine."""

    def run_job(self, context, runtime, data):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        return len(bytearray(8 << 30))


class Families(Accepting):
    """Starts processes that would outlive it: a child, one in its own session, an orphan."""

    def run_job(self, context, runtime, data):
        subprocess.Popen(["sleep", "611"])
        subprocess.Popen(["sleep", "612"], start_new_session=True)
        subprocess.run(["sh", "-c", "setsid sleep 613 & exit 0"], check=True)
        if data.get("stay", False):
            time.sleep(600)
        return "left"


class Dynasty(Accepting):
    """Starts a chain of processes, each in its own session, and a thread, all of which write."""

    def run_job(self, context, runtime, data):
        path = data["path"]

        def write():
            while True:
                with open(path, "a") as file:
                    file.write("by a thread\n")
                time.sleep(0.01)

        script = f"while :; do echo written >> {path}; sleep 0.01; done"
        for _ in range(6):
            script = f"setsid sh -c {shlex.quote(script)}; :"
        subprocess.Popen(["sh", "-c", script])
        threading.Thread(target=write, daemon=True).start()
        while subprocess.run(["grep", "-q", "written", path], check=False).returncode != 0:
            time.sleep(0.01)
        if data.get("stay", False):
            time.sleep(600)
        return "left"


class Streaming(Accepting):
    """Starts a streaming query, and waits for its end if configured."""

    def run_job(self, context, runtime, data):
        rate = context.readStream.format("rate").load()
        query = rate.writeStream.format("noop").trigger(processingTime="1 second").start()
        if data.get("wait"):
            query.awaitTermination()
        return query.isActive


class OwnStreaming(Accepting):
    """Creates its own StreamingContext that writes for each batch; waits, stops it, or leaves it running."""

    def run_job(self, context, runtime, data):
        from pyspark.streaming import StreamingContext

        spark = context.sparkContext
        streaming = StreamingContext(spark, 0.2)
        path = data["path"]

        def write(rdd):
            with open(path, "a") as file:
                file.write(f"{rdd.count()}\n")

        streaming.queueStream([], default=spark.parallelize([1, 2], 1)).foreachRDD(write)
        streaming.start()
        while not os.path.exists(path):
            time.sleep(0.05)
        if data["then"] == "wait":
            streaming.awaitTermination()
        if data["then"] == "stop":
            streaming.stop()
        return "left"


class QueryOfAnotherSession(Accepting):
    """Starts a streaming query in its own session, and waits for its end."""

    def run_job(self, context, runtime, data):
        rate = context.newSession().readStream.format("rate").load()
        rate.writeStream.format("noop").queryName("mine").start().awaitTermination()


class AllQueries(Accepting):
    """The names of the streaming queries of all sessions."""

    def run_job(self, context, runtime, data):
        queries = context._jsparkSession.sharedState().activeStreamingQueries().values()
        return [query.name() for query in queries]


class StreamingQueries(Accepting):
    def run_job(self, context, runtime, data):
        return [query.id for query in context.streams.active]


class KillsJvm(Accepting):
    def run_job(self, context, runtime, data):
        context.sparkContext._jvm.java.lang.System.exit(7)


class FillsHeap(Accepting):
    def run_job(self, context, runtime, data):
        held = context.sparkContext._jvm.java.util.ArrayList()
        while True:
            held.add(context.sparkContext._gateway.new_array(context.sparkContext._jvm.long, 100_000_000))


class StopsApplication(Accepting):
    """Stops the application without PySpark noticing, and continues."""

    def run_job(self, context, runtime, data):
        context.sparkContext._jsc.sc().stop()
        time.sleep(600)


class NeverValid(Accepting):
    """Its validation does not end."""

    def validate(self, context, runtime, config):
        print("validating")
        while True:
            pass

    def run_job(self, context, runtime, data):
        return None


class NoMethods:
    pass


class BadConstructor(Accepting):
    def __init__(self):
        raise RuntimeError("cannot be made")

    def run_job(self, context, runtime, data):
        return None


class BadValidation(Accepting):
    def validate(self, context, runtime, config):
        raise KeyError("validation broke")

    def run_job(self, context, runtime, data):
        return None


class BadText(Accepting):
    """Raises an exception whose message cannot be read."""

    def run_job(self, context, runtime, data):
        class Awkward(Exception):
            def __str__(self):
                raise RuntimeError("no words")

        raise Awkward


class SparkFailure(Accepting):
    def run_job(self, context, runtime, data):
        def fail(value):
            raise ValueError(f"bad row {value}")

        return context.sparkContext.parallelize([1], 1).map(fail).collect()


NOT_A_CLASS = "text"
