"""The table of docs/explanation/performance.md: how fast jobs are through a real server, with baselines.

    python benchmarks/table.py [--only ROW ...] [--jobs 300] [--into FILE]
    python benchmarks/table.py --only --into FILE        # print what the file has

Each row takes less than two minutes on an idle machine, except for ``stored-jobs``. With ``--into``, figures
are merged into a JSON file, so that rows can be measured one by one; the whole table is printed at the end.

A separate process runs a server with SQLite on disk and Spark on ``local[2]``; this one has the clients. A
baseline is measured in the same run, in turns where that is possible, and the goal is printed beside each
figure. The machine should be otherwise idle: its load is printed before and after. CPU is counted for each
process of the server's tree. Rows about the front-end alone use a server without Spark, which is
``inline_server.py``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from metadata_pages import fill

from jobserver_pyspark.demo import build_wheel
from jobserver_sql import SqlMetadataStore

JOBS = """
class Nothing:
    def validate(self, context, runtime, config):
        return config

    def run_job(self, context, runtime, data):
        return None


class WordCount(Nothing):
    def run_job(self, context, runtime, data):
        words = data.get("input.string").split()
        return dict(context.sparkContext.parallelize(words).countByValue())
"""
SCALA = """
package bench
import com.typesafe.config.Config
import org.apache.spark.SparkContext
import spark.jobserver.{SparkJob, SparkJobValid, SparkJobValidation}

object Nothing extends SparkJob {
  def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid
  def runJob(sc: SparkContext, config: Config): Any = null
}

object WordCount extends SparkJob {
  def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid
  def runJob(sc: SparkContext, config: Config): Any =
    sc.parallelize(config.getString("input.string").split(" ").toSeq).countByValue()
}
"""
STOCK = """
import sys, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
def count():
    return dict(spark.sparkContext.parallelize("a b c a b see".split()).countByValue())
count()
print("first", time.time(), flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    count()
    print(time.perf_counter() - begun, flush=True)
spark.stop()
"""
CORE = """
import sys, threading, time
from pathlib import Path
from jobserver_core import BinaryType, JobRequest, JobServer
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryFetcher, MemoryMetadataStore
from jobserver_sql import SqlMetadataStore
kind, directory, wheel = sys.argv[1:4]
store = MemoryMetadataStore() if kind == "memory" else SqlMetadataStore(f"sqlite:///{directory}/core.db")
server = JobServer(metadata=store, blobs=MemoryBlobStore(), fetcher=MemoryFetcher(),
    launcher=InlineLauncher({"a.Nothing": lambda _job: None}))
with server:
    server.upload("a", BinaryType.WHEEL, Path(wheel).read_bytes())
    server.create_context("warm").result(10)
    def one():
        server.submit(JobRequest(class_name="a.Nothing", class_path="a", context="warm")).result(timeout=60)
    for _ in range(200): one()
    left = iter(range(4000))
    def work():
        for _ in left: one()
    threads = [threading.Thread(target=work) for _ in range(16)]
    begun = time.perf_counter()
    [t.start() for t in threads]; [t.join() for t in threads]
    print(4000 / (time.perf_counter() - begun))
"""
EMBEDDED = """
import sys, time
from pathlib import Path
from jobserver_core import BinaryType, JobRequest, JobServer, Settings
directory, wheel, jar = sys.argv[1:4]
settings = Settings.from_mapping({"spark": {"master": "local[2]"}, "jobserver": {"data-dir": directory}})
with JobServer.from_settings(settings) as server:
    server.upload("py", BinaryType.WHEEL, Path(wheel).read_bytes())
    server.upload("jvm", BinaryType.JAR, Path(jar).read_bytes())
    server.create_context("warm").result(120)
    for label, path, name in (("Python", "py", "bench_jobs.Nothing"), ("JVM", "jvm", "bench.Nothing")):
        times = []
        for _ in range(330):
            begun = time.perf_counter()
            server.submit(JobRequest(class_name=name, class_path=path, context="warm")).result(timeout=60)
            times.append(time.perf_counter() - begun)
        print(label, *times[30:])
"""
CALL = """
import timeit
print(min(timeit.repeat(lambda: None, number=100000, repeat=3)) / 100000)
"""
STATIC = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda _request: FileResponse(sys.argv[1]))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""
WORDS = "input.string = a b c a b see"
TICK = os.sysconf("SC_CLK_TCK")


# -- a server and its clients --------------------------------------------------------------------------


class Client:
    """One connection that is kept, without Nagle's algorithm."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300, blocksize=2**20)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "") -> object:
        self._connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {data[:500]!r}")
        return json.loads(data)

    def send(self, method: str, path: str) -> None:
        self._connection.request(method, path)

    def receive(self, method: str, path: str) -> None:
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {data[:500]!r}")

    def upload(self, path: str, source: Path) -> None:
        with source.open("rb") as file:
            headers = {
                "Content-Type": "application/java-archive",
                "Content-Length": str(source.stat().st_size),
            }
            self._connection.request("POST", path, file, headers)
            self.receive("POST", path)

    def drain(self, path: str, size: int) -> None:
        """Read a large response of at least this many bytes without keeping it."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        buffer = bytearray(1024 * 1024)
        while read := answer.readinto(buffer):
            size -= read
        if answer.status != 200 or size > 0:
            sys.exit(f"GET {path}: {answer.status}, {size} bytes are missing")

    def run(self, app: str, main_class: str, context: str, config: str = "") -> object:
        query = urllib.parse.urlencode(
            {"appName": app, "classPath": main_class, "context": context, "sync": "true", "timeout": "120"}
        )
        answer = self.call("POST", f"/jobs?{query}", config.encode())
        if not isinstance(answer, dict) or "status" in answer:
            sys.exit(f"{main_class}: {answer}")
        return answer["result"]


class Server:
    """``jobserver serve`` in its own process."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        config = directory / "server.conf"
        config.write_text(f'spark.master = "local[2]"\n{settings}\n')
        self._log = (directory / "server.log").open("wb")
        program = str(Path(sys.executable).with_name("jobserver"))
        options = ["--port", str(self.port), "--data-dir", str(directory / "data"), "--config", str(config)]
        self.process = subprocess.Popen([program, "serve", *options], stdout=self._log, stderr=self._log)
        self.wait_healthy()

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                Client(self.port).call("GET", "/healthz")
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit("the server does not answer")
                time.sleep(0.01)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self._log.close()


def processes_of(root: int) -> dict[int, str]:
    """Return the processes of a tree, each with its role."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    tree, found = {root: "server"}, [root]
    while found:
        parent = found.pop()
        for child in (pid for pid, its in parents.items() if its == parent and pid not in tree):
            tree[child] = kind_of(child, tree[parent])
            found.append(child)
    return tree


def kind_of(pid: int, parent: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    if b"java" in command.split(b"\0")[0]:
        return "JVM"
    if b"pyspark" in command and b"daemon" in command:
        return "Python workers"
    if b"jobserver_pyspark.host" in command:
        return "host"
    return "runners" if parent in ("host", "runners") else parent


def cpu_of(root: int) -> dict[str, float]:
    """Return the seconds of CPU that each kind of process has used."""
    used: dict[str, float] = defaultdict(float)
    for pid, kind in processes_of(root).items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used[kind] += (int(fields[11]) + int(fields[12])) / TICK
    return used


# -- figures -------------------------------------------------------------------------------------------


FIGURES: dict[str, dict[str, str]] = {}


def show(name: str, figure: str, goal: str = "", *, baseline: str = "", ratio: str = "") -> None:
    load = f"{os.getloadavg()[0]:.1f}"
    FIGURES[name] = {"figure": figure, "goal": goal, "baseline": baseline, "ratio": ratio, "load": load}
    print_row(name)


def print_row(name: str) -> None:
    print(f"| {name} | {' | '.join(FIGURES[name].values())} |", flush=True)


def print_head() -> None:
    print("| what | figure | goal | baseline | ratio | load |\n| --- | --- | --- | --- | --- | --- |")


def merge(file: Path) -> None:
    """Write the figures to a file, beside those of other rows that it has, and print all."""
    before = json.loads(file.read_text()) if file.exists() else {}
    FIGURES.update({**before, **FIGURES})
    file.write_text(json.dumps(FIGURES, indent=1) + "\n")
    print(f"\n{file}:\n")
    print_head()
    for name in FIGURES:
        print_row(name)


def milliseconds(times: list[float]) -> str:
    p99 = statistics.quantiles(times, n=100)[98] if len(times) >= 100 else max(times)
    return f"{1000 * statistics.median(times):.1f} ms, p99 {1000 * p99:.1f} ms"


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def back_to_back(call: Callable[[], object], count: int) -> list[float]:
    for _ in range(max(20, count // 10)):
        call()
    return [timed(call) for _ in range(count)]


def throughput(port: int, job: Callable[[Client], object], count: int, clients: int = 16) -> float:
    """Return jobs per second over this many connections, each with its own thread."""
    left = iter(range(count))

    def work() -> None:
        client = Client(port)
        for _ in left:
            job(client)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - begun)


class Bench:
    """Shared by the rows: a directory, a server, the jobs, and stock PySpark."""

    def __init__(self, directory: Path, jobs: int) -> None:
        self.directory = directory
        self.jobs = jobs
        self.wheel = self.make_wheel("bench_jobs")

    def make_wheel(self, name: str) -> Path:
        package = self.directory / name
        package.mkdir()
        (package / "__init__.py").write_text(JOBS)
        return build_wheel(package, self.directory, version="1.0")

    def jar(self) -> Path:
        """Compile the JVM jobs against the API that a context offers."""
        source, target = self.directory / "Jobs.scala", self.directory / "jobs.jar"
        if not target.exists():
            source.write_text(SCALA)
            classes = self.directory / "classes"
            classes.mkdir()
            program = str(Path(sys.executable).with_name("jobserver"))
            done = subprocess.run([program, "jvm-api"], capture_output=True, text=True, check=True)
            path = done.stdout.strip()
            compiler = ["java", "-cp", path.split(":")[-1], "scala.tools.nsc.Main", "-nowarn"]
            subprocess.run([*compiler, "-d", str(classes), "-classpath", path, str(source)], check=True)
            with zipfile.ZipFile(target, "w") as archive:
                for each in sorted(classes.rglob("*.class")):
                    archive.write(each, each.relative_to(classes))
        return target

    @contextmanager
    def server(
        self, settings: str = "", context: str = "", *, warm: bool = True, jvm: bool = False
    ) -> Iterator[Server]:
        """Start a server with the Python jobs, with the JVM jobs, and with the context ``warm`` ready."""
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        server = Server(directory, settings)
        try:
            client = Client(server.port)
            client.call("POST", "/binaries/py", self.wheel.read_bytes(), "application/python-wheel")
            if jvm:
                client.call("POST", "/binaries/jvm", self.jar().read_bytes(), "application/java-archive")
            if warm:
                client.call("POST", f"/contexts/warm?{context}")
            yield server
        finally:
            server.close()
            shutil.rmtree(directory, ignore_errors=True)

    def output_of(self, program: str, *arguments: object) -> list[str]:
        """Run a Python program; return the lines that it prints."""
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return done.stdout.splitlines()

    def function_call(self) -> str:
        """Return how long a Python function call takes."""
        return f"function call {1e9 * float(self.output_of(CALL)[0]):.0f} ns"

    @contextmanager
    def inline_server(
        self, directory: Path | None = None
    ) -> Iterator[tuple[int, subprocess.Popen[str], Path]]:
        """Start a server without Spark, with the binary ``x``; yield its port, its process, its directory."""
        directory = directory or Path(tempfile.mkdtemp(dir=self.directory))
        program = str(Path(__file__).with_name("inline_server.py"))
        with (directory / "log").open("wb") as log:
            command = [sys.executable, program, str(directory)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            Client(port).call("POST", "/binaries/x", self.wheel.read_bytes(), "application/python-wheel")
            yield port, process, directory
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(directory, ignore_errors=True)

    def cold_stock(self) -> float:
        """Return how many seconds a fresh stock PySpark takes to its first word count."""
        begun = time.time()
        with stock_session() as (_, answers):
            return float(answers.readline().split()[1]) - begun

    @contextmanager
    def warm_stock(self) -> Iterator[Callable[[], float]]:
        """Start a stock session; yield a function that counts words in it and returns how long that took."""
        with stock_session() as (requests, answers):
            answers.readline()

            def count() -> float:
                requests.write("\n")
                requests.flush()
                return float(answers.readline())

            yield count


@contextmanager
def static_server(file: Path) -> Iterator[Client]:
    """Serve one file with Starlette and uvicorn, in a separate process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", STATIC, str(file), str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                client = Client(port)
                break
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit("the static server does not answer")
                time.sleep(0.02)
        yield client
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def stock_session() -> Iterator[tuple[IO[str], IO[str]]]:
    """Start PySpark without the job server; it ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STOCK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdin, process.stdout
        process.stdin.close()


# -- rows ----------------------------------------------------------------------------------------------


def no_op(bench: Bench) -> None:
    """No-ops over HTTP: latency, jobs a second, CPU by process."""
    with bench.server(jvm=True) as server:
        client = Client(server.port)
        health = back_to_back(lambda: client.call("GET", "/healthz"), 200)
        show("GET /healthz", milliseconds(health))
        for label, app, main_class, goal in (
            ("Python", "py", "bench_jobs.Nothing", "3 ms, p99 10 ms"),
            ("JVM", "jvm", "bench.Nothing", "4 ms"),
        ):

            def job(one: Client, app: str = app, main_class: str = main_class) -> object:
                return one.run(app, main_class, "warm")

            times = back_to_back(lambda job=job: job(client), bench.jobs)
            show(
                f"no-op, {label}",
                milliseconds(times),
                goal,
                baseline="GET /healthz",
                ratio=ratio(times, health),
            )
            throughput(server.port, job, bench.jobs // 2)
            before = cpu_of(server.process.pid)
            rate = throughput(server.port, job, bench.jobs * 4)
            spent = {k: v - before.get(k, 0.0) for k, v in cpu_of(server.process.pid).items()}
            each = {kind: 1000 * used / bench.jobs / 4 for kind, used in spent.items() if used > 0.01}
            show(f"no-ops a second, 16 clients, {label}", f"{rate:.0f}/s", "500/s")
            show(
                f"CPU of each of these, {label}",
                f"{sum(each.values()):.1f} ms",
                "4 ms",
                baseline=", ".join(f"{kind} {used:.1f}" for kind, used in each.items()),
            )


def embedded(bench: Bench) -> None:
    """No-ops without HTTP, in a program that embeds the server."""
    directory = tempfile.mkdtemp(dir=bench.directory)
    for line in bench.output_of(EMBEDDED, directory, bench.wheel, bench.jar()):
        label, *times = line.split()
        goal = "2 ms" if label == "Python" else "3 ms"
        show(
            f"no-op, {label}, embedded",
            milliseconds([float(each) for each in times]),
            goal,
            baseline=bench.function_call(),
        )


def fresh(bench: Bench) -> None:
    """No-ops in fresh Python processes, against processes that are reused."""
    with bench.server(context="python.process=fresh") as server:
        client = Client(server.port)
        client.call("POST", "/contexts/reused")

        def job(one: Client, context: str = "warm") -> object:
            return one.run("py", "bench_jobs.Nothing", context)

        for _ in range(30):
            job(client)
            job(client, "reused")
        ours, theirs = [], []
        for _ in range(40):
            time.sleep(0.5)  # until a spare process is ready
            theirs.append(timed(lambda: job(client, "reused")))
            ours.append(timed(lambda: job(client)))
        show(
            "no-op, Python, fresh process with a spare ready",
            milliseconds(ours),
            "8 ms",
            baseline=f"reused process {milliseconds(theirs)}",
            ratio=ratio(ours, theirs),
        )
        throughput(server.port, job, 100)
        show("no-ops a second, fresh processes", f"{throughput(server.port, job, 200):.0f}/s", "100/s")


def words(bench: Bench) -> None:
    """The seed's word count against stock PySpark."""
    with bench.server(jvm=True) as server, bench.warm_stock() as stock:
        client = Client(server.port)
        calls: dict[str, Callable[[], object]] = {
            "Python": lambda: client.run("py", "bench_jobs.WordCount", "warm", WORDS),
            "JVM": lambda: client.run("jvm", "bench.WordCount", "warm", WORDS),
        }
        for label, call in calls.items():
            ours, theirs = [], []
            for number in range(60):
                pair = (timed(call), stock())
                if number >= 20:
                    ours.append(pair[0])
                    theirs.append(pair[1])
            show(
                f"word count, {label}",
                milliseconds(ours),
                "0.65 x" if label == "Python" else "0.7 x",
                baseline=f"warm stock session {milliseconds(theirs)}",
                ratio=ratio(ours, theirs),
            )


def configuration(bench: Bench) -> None:
    """A large configuration against an empty one."""
    large = json.dumps({f"key{i}": {"a": i, "b": f"text {i}", "c": [1, 2, 3]} for i in range(1940)})
    with bench.server() as server:
        client = Client(server.port)
        empty = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm"), 100)
        full = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm", large), 100)
        more = 1000 * (statistics.median(full) - statistics.median(empty))
        show(
            f"{len(large) // 1000} kB of JSON configuration",
            milliseconds(full),
            "+4 ms",
            baseline=f"empty {milliseconds(empty)}",
            ratio=f"+{more:.1f} ms",
        )


def class_paths(bench: Bench) -> None:
    """The first job of a class path that the context has not seen."""
    with bench.server() as server:
        client = Client(server.port)
        client.run("py", "bench_jobs.Nothing", "warm")
        first, again = [], []
        for number in range(8):
            name = f"other{number}"
            client.call(
                "POST", f"/binaries/{name}", bench.make_wheel(name).read_bytes(), "application/python-wheel"
            )
            time.sleep(0.5)
            first.append(timed(lambda n=name: client.run(n, f"{n}.Nothing", "warm")))
            again.append(timed(lambda n=name: client.run(n, f"{n}.Nothing", "warm")))
        more = 1000 * (statistics.median(first) - statistics.median(again))
        show(
            "first job of a new class path",
            milliseconds(first),
            "+50 ms",
            baseline=f"again {milliseconds(again)}",
            ratio=f"+{more:.0f} ms",
        )


def starts(bench: Bench) -> None:
    """A context's start to its first result, against a cold PySpark script."""
    with bench.server() as server:
        client = Client(server.port)
        ours, theirs = [], []
        for number in range(3):

            def start(name: str = f"c{number}") -> None:
                client.call("POST", f"/contexts/{name}")
                client.run("py", "bench_jobs.WordCount", name, WORDS)

            ours.append(timed(start))
            client.call("DELETE", f"/contexts/c{number}")
            theirs.append(bench.cold_stock())
        show(
            "context start to first result",
            seconds(ours),
            "0.5 x",
            baseline=f"cold script {seconds(theirs)}",
            ratio=ratio(ours, theirs),
        )


def first_start(bench: Bench) -> None:
    """The same with an empty cache directory, as on a fresh machine."""
    ours, theirs = [], []
    for _ in range(2):
        cache = tempfile.mkdtemp(dir=bench.directory)
        with bench.server(f'jobserver.launcher.options.cache-dir = "{cache}"', warm=False) as server:
            client = Client(server.port)

            def start(client: Client = client) -> None:
                client.call("POST", "/contexts/first")
                client.run("py", "bench_jobs.WordCount", "first", WORDS)

            ours.append(timed(start))
        theirs.append(bench.cold_stock())
    show(
        "the same, first start on a machine",
        seconds(ours),
        "0.75 x",
        baseline=f"cold script {seconds(theirs)}",
        ratio=ratio(ours, theirs),
    )


def ad_hoc(bench: Bench) -> None:
    """An ad-hoc job that takes a spare context, against a cold PySpark script."""
    with bench.server("jobserver.contexts.pools { default { size = 1 } }") as server:
        client = Client(server.port)
        ours, theirs = [], []
        for _ in range(4):
            wait_for_spare(client)
            query = "/jobs?appName=py&classPath=bench_jobs.WordCount&sync=true&timeout=120"
            ours.append(timed(lambda q=query: client.call("POST", q, WORDS.encode())))
            theirs.append(bench.cold_stock())
        show(
            "ad-hoc job with a spare ready",
            seconds(ours),
            "0.05 x",
            baseline=f"cold script {seconds(theirs)}",
            ratio=ratio(ours, theirs),
        )


def wait_for_spare(client: Client) -> None:
    deadline = time.monotonic() + 240
    while True:
        (pool,) = cast("list[dict[str, int]]", client.call("GET", "/contexts?spares=true"))
        if pool["ready"]:
            return
        if time.monotonic() > deadline:
            sys.exit("no spare context became ready")
        time.sleep(0.2)


def idle(bench: Bench) -> None:
    """What an idle server and an idle context cost."""
    with bench.server() as server:
        Client(server.port).run("py", "bench_jobs.Nothing", "warm")
        time.sleep(20)
        tree = processes_of(server.process.pid)
        before = {pid: switches(pid) for pid in tree}
        time.sleep(30)
        goals = {"server": "70 MB, 1/s", "host": "2/s", "JVM": "400 MB"}
        for kind, goal in goals.items():
            pids = [pid for pid, its in tree.items() if its == kind]
            wakes = sum(switches(pid) - before[pid] for pid in pids) / 30
            memory = sum(resident(pid) for pid in pids)
            show(f"idle {kind}", f"{memory} MB, {wakes:.1f} wake-ups/s", goal)


def core(bench: Bench) -> None:
    """The core alone, without HTTP and Spark."""
    for kind, goal in (("memory", "3000/s"), ("sqlite", "1500/s")):
        (rate,) = bench.output_of(CORE, kind, tempfile.mkdtemp(dir=bench.directory), bench.wheel)
        show(f"core alone, {kind}, 16 threads", f"{float(rate):.0f}/s", goal, baseline=bench.function_call())


def waiters(bench: Bench) -> None:
    """A thousand synchronous clients that wait for jobs."""
    with bench.inline_server() as (port, process, directory):
        client = Client(port)
        client.call("POST", "/contexts/slots")
        client.run("x", "b.Nothing", "slots")
        before = (threads_of(process.pid), resident(process.pid))
        query = "/jobs?appName=x&classPath=b.Gated&context=slots&sync=true&timeout=120"
        waiting = [Client(port) for _ in range(1000)]
        for each in waiting:
            each.send("POST", query)
        while len(cast("list[object]", client.call("GET", "/jobs?limit=10000&context=slots"))) <= 1000:
            time.sleep(0.2)
        threads, memory = threads_of(process.pid) - before[0], resident(process.pid) - before[1]
        beside = timed(lambda: client.call("GET", "/healthz"))
        (directory / "gate").touch()
        for each in waiting:
            each.receive("POST", query)
        show(
            "1,000 synchronous waiters",
            f"+{threads} threads, +{memory} MB",
            "no thread each, +60 MB",
            baseline=f"GET /healthz beside them {1000 * beside:.1f} ms",
        )


def transfers(bench: Bench, megabytes: int = 1000) -> None:
    """A large upload against hashing and copying the file, and a large result against a static file."""
    source = bench.directory / "large.zip"
    with zipfile.ZipFile(source, "w") as archive, archive.open("data.bin", "w", force_zip64=True) as member:
        block = os.urandom(10**6)
        for _ in range(megabytes):
            member.write(block)
    with bench.inline_server() as (port, process, directory):
        client = Client(port)
        client.call("POST", "/contexts/slots")
        before = reset_peak(process.pid)
        taken = timed(lambda: client.upload("/binaries/large", source))
        more = peak(process.pid) - before
        copy = f"sha256sum {source} && cp {source} {directory / 'copy'} && sync {directory / 'copy'}"
        theirs = timed(lambda: subprocess.run(copy, shell=True, check=True, stdout=subprocess.DEVNULL))
        show(
            f"{megabytes} MB upload",
            f"{taken:.1f} s, +{more} MB",
            "1.2 x, +32 MB",
            baseline=f"sha256sum and cp {theirs:.1f} s",
            ratio=f"{taken / theirs:.2f} x",
        )
        query = "/jobs?appName=x&classPath=b.Numbers&context=slots"
        accepted = cast("dict[str, str]", client.call("POST", query, b"megabytes = %d" % megabytes))
        job = f"/jobs/{accepted['jobId']}"
        while cast("dict[str, str]", client.call("GET", f"{job}?result=false"))["status"] != "FINISHED":
            time.sleep(0.1)
        before = reset_peak(process.pid)
        taken = timed(lambda: client.drain(f"{job}/result", megabytes * 10**6))
        more = peak(process.pid) - before
        with static_server(directory / "copy") as other:
            theirs = timed(lambda: other.drain("/", megabytes * 10**6))
        show(
            f"{megabytes} MB streamed result",
            f"{taken:.1f} s, +{more} MB",
            "3 x, +32 MB",
            baseline=f"static file {theirs:.1f} s",
            ratio=f"{taken / theirs:.2f} x",
        )


def stored_jobs(bench: Bench) -> None:
    """Requests with a million stored jobs against the same with a thousand."""
    with ExitStack() as stack:
        clients: dict[int, Client] = {}
        for count in (1000, 1_000_000):
            directory = Path(tempfile.mkdtemp(dir=bench.directory))
            store = SqlMetadataStore(f"sqlite:///{directory / 'metadata.db'}")
            fill(store, count)
            store.close()
            port, _, _ = stack.enter_context(bench.inline_server(directory))
            clients[count] = Client(port)
            clients[count].call("POST", "/contexts/slots")
        calls: dict[str, Callable[[Client], object]] = {
            "GET": lambda client: client.call("GET", "/jobs"),
            "POST": lambda client: client.run("x", "b.Nothing", "slots"),
        }
        for name, call in calls.items():
            times: dict[int, list[float]] = {count: [] for count in clients}
            for number in range(220):
                for count, client in clients.items():
                    spent = timed(lambda one=client, call=call: call(one))
                    if number >= 20:
                        times[count].append(spent)
            few, many = times.values()
            show(
                f"{name} /jobs, 1,000,000 stored jobs",
                milliseconds(many),
                "1.2 x",
                baseline=f"1,000 stored jobs {milliseconds(few)}",
                ratio=ratio(many, few),
            )


def healthy(bench: Bench) -> None:
    """From the start of a server to its first answer."""
    ours, theirs = [], []
    # As in an installation, modules are compiled already: the first start, which does that, does not count.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(bench.directory / "bytecode")
    for _ in range(6):
        directory = Path(tempfile.mkdtemp(dir=bench.directory))
        begun = time.perf_counter()
        server = Server(directory)
        ours.append(time.perf_counter() - begun)
        server.close()
        command = [sys.executable, "-c", "import starlette.applications, uvicorn"]
        theirs.append(timed(lambda c=command: subprocess.run(c, check=True)))
    more = statistics.median(ours[1:]) - statistics.median(theirs[1:])
    show(
        "server start to healthy",
        seconds(ours[1:]),
        "+0.6 s",
        baseline=f"import starlette, uvicorn {seconds(theirs[1:])}",
        ratio=f"+{more:.2f} s",
    )


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f} x"


def seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s"


def switches(pid: int) -> int:
    """Return the number of voluntary context switches of a process: one for each wake-up."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def peak(pid: int) -> int:
    """Return the peak resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def reset_peak(pid: int) -> int:
    """Reset the peak memory of a process to its present size, and return that in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20


ROWS = {
    row.__name__.replace("_", "-"): row
    for row in (
        core,
        healthy,
        waiters,
        transfers,
        stored_jobs,
        no_op,
        embedded,
        fresh,
        words,
        configuration,
        class_paths,
        starts,
        first_start,
        ad_hoc,
        idle,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--into", type=Path, help="a JSON file to merge the figures into")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}\n")
    print_head()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # servers end with their blocks
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.jobs)
        for name in options.only:
            ROWS[name](bench)
    if options.into:
        merge(options.into)


if __name__ == "__main__":
    main()
