"""The table of docs/explanation/performance.md: how fast jobs are through a real server, with baselines.

    python benchmarks/table.py [--only NAME ...] [--jobs 300]

A separate process runs a server with SQLite on disk and Spark on ``local[2]``; this one has the clients. A
baseline is measured in the same run, in turns where that is possible. The machine should be otherwise idle:
its load is printed before and after. CPU is counted for each process of the server's tree.
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
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobserver_pyspark.demo import build_wheel

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
WORDS = "input.string = a b c a b see"
TICK = os.sysconf("SC_CLK_TCK")


# -- a server and its clients --------------------------------------------------------------------------


class Client:
    """One connection that is kept, without Nagle's algorithm."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "") -> object:
        self._connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {data[:500]!r}")
        return json.loads(data)

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


def show(name: str, figure: str, baseline: str = "", ratio: str = "") -> None:
    print(f"| {name} | {figure} | {baseline} | {ratio} |", flush=True)


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
    def server(self, settings: str = "", context: str = "") -> Iterator[Server]:
        """Start a server with the jobs uploaded and the context ``warm`` ready."""
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        server = Server(directory, settings)
        try:
            client = Client(server.port)
            client.call("POST", "/binaries/py", self.wheel.read_bytes(), "application/python-wheel")
            client.call("POST", "/binaries/jvm", self.jar().read_bytes(), "application/java-archive")
            client.call("POST", f"/contexts/warm?{context}")
            yield server
        finally:
            server.close()
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
    with bench.server() as server:
        client = Client(server.port)
        health = back_to_back(lambda: client.call("GET", "/healthz"), 200)
        show("GET /healthz", milliseconds(health))
        for label, app, main_class in (
            ("Python", "py", "bench_jobs.Nothing"),
            ("JVM", "jvm", "bench.Nothing"),
        ):

            def job(one: Client, app: str = app, main_class: str = main_class) -> object:
                return one.run(app, main_class, "warm")

            times = back_to_back(lambda job=job: job(client), bench.jobs)
            show(f"no-op, {label}", milliseconds(times), "GET /healthz", ratio(times, health))
            throughput(server.port, job, bench.jobs // 2)
            before = cpu_of(server.process.pid)
            rate = throughput(server.port, job, bench.jobs * 4)
            spent = {k: v - before.get(k, 0.0) for k, v in cpu_of(server.process.pid).items()}
            each = ", ".join(f"{k} {1000 * v / bench.jobs / 4:.2f}" for k, v in spent.items() if v > 0.01)
            show(f"no-ops a second, 16 clients, {label}", f"{rate:.0f}/s", f"CPU ms a job: {each}")


def fresh(bench: Bench) -> None:
    """No-ops in fresh Python processes."""
    with bench.server(context="python.process=fresh") as server:
        client = Client(server.port)

        def job(one: Client) -> object:
            return one.run("py", "bench_jobs.Nothing", "warm")

        times = []
        for _ in range(40):
            time.sleep(0.3)  # until a spare process is ready
            times.append(timed(lambda: job(client)))
        show("no-op, Python, fresh process with a spare ready", milliseconds(times))
        show("no-ops a second, fresh processes", f"{throughput(server.port, job, 200):.0f}/s")


def words(bench: Bench) -> None:
    """The seed's word count against stock PySpark."""
    with bench.server() as server, bench.warm_stock() as stock:
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
                f"stock {milliseconds(theirs)}",
                ratio(ours, theirs),
            )


def configuration(bench: Bench) -> None:
    """A large configuration against an empty one."""
    large = json.dumps({f"key{i}": {"a": i, "b": f"text {i}", "c": [1, 2, 3]} for i in range(2200)})
    with bench.server() as server:
        client = Client(server.port)
        empty = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm"), 100)
        full = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm", large), 100)
        more = 1000 * (statistics.median(full) - statistics.median(empty))
        show(
            f"{len(large) // 1000} kB of JSON configuration",
            milliseconds(full),
            milliseconds(empty),
            f"+{more:.1f} ms",
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
            f"again {milliseconds(again)}",
            f"+{more:.0f} ms",
        )


def starts(bench: Bench) -> None:
    """A context's start to its first result, and an ad-hoc job, against a cold PySpark script."""
    with bench.server() as server:
        client = Client(server.port)
        ours, ad_hoc, theirs = [], [], []
        for number in range(4):

            def start(name: str = f"c{number}") -> None:
                client.call("POST", f"/contexts/{name}")
                client.run("py", "bench_jobs.WordCount", name, WORDS)

            ours.append(timed(start))
            client.call("DELETE", f"/contexts/c{number}")
            theirs.append(bench.cold_stock())
            time.sleep(8)  # until a spare is there, if there are any
            query = "/jobs?appName=py&classPath=bench_jobs.WordCount&sync=true&timeout=120"
            ad_hoc.append(timed(lambda q=query: client.call("POST", q, WORDS.encode())))
        show(
            "context start to first result",
            seconds(ours),
            f"cold script {seconds(theirs)}",
            ratio(ours, theirs),
        )
        show("ad-hoc job", seconds(ad_hoc), f"cold script {seconds(theirs)}", ratio(ad_hoc, theirs))


def idle(bench: Bench) -> None:
    """What an idle server and an idle context cost."""
    with bench.server() as server:
        Client(server.port).run("py", "bench_jobs.Nothing", "warm")
        time.sleep(20)
        tree = processes_of(server.process.pid)
        before = {pid: switches(pid) for pid in tree}
        time.sleep(30)
        for kind in ("server", "host", "JVM"):
            pids = [pid for pid, its in tree.items() if its == kind]
            wakes = sum(switches(pid) - before[pid] for pid in pids) / 30
            memory = sum(resident(pid) for pid in pids)
            show(f"idle {kind}", f"{memory} MB, {wakes:.1f} wake-ups/s")


def core(bench: Bench) -> None:
    """The core alone, without HTTP and Spark."""
    program = """
import sys, threading, time
from pathlib import Path
from jobserver_core import BinaryType, JobRequest, JobServer, Settings, load_settings
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryFetcher, MemoryMetadataStore
from jobserver_core.models.binaries import ClassPathEntry
from jobserver_sql import SqlMetadataStore
kind, directory, wheel = sys.argv[1:4]
store = MemoryMetadataStore() if kind == "memory" else SqlMetadataStore(f"sqlite:///{directory}/core.db")
server = JobServer(metadata=store, blobs=MemoryBlobStore(), fetcher=MemoryFetcher(),
    launcher=InlineLauncher({"a.Nothing": lambda _job: None}))
with server:
    server.upload("a", BinaryType.WHEEL, Path(wheel).read_bytes())
    server.create_context("warm").result(10)
    def one():
        request = JobRequest(class_path=(ClassPathEntry(name="a"),), context="warm", **{NAME: "a.Nothing"})
        server.submit(request).result(timeout=60)
    import attrs
    NAME = next(f.name for f in attrs.fields(JobRequest) if f.name in ("class_name", "main_class"))
    for _ in range(200): one()
    left = iter(range(4000))
    def work():
        for _ in left: one()
    threads = [threading.Thread(target=work) for _ in range(16)]
    begun = time.perf_counter()
    [t.start() for t in threads]; [t.join() for t in threads]
    print(4000 / (time.perf_counter() - begun))
"""
    for kind in ("memory", "sqlite"):
        directory = tempfile.mkdtemp(dir=bench.directory)
        done = subprocess.run(
            [sys.executable, "-c", program, kind, directory, str(bench.wheel)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
        show(f"core alone, {kind}, 16 threads", f"{float(done.stdout):.0f} jobs/s")


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
    show("server start to healthy", seconds(ours[1:]), f"imports {seconds(theirs[1:])}", f"+{more:.2f} s")


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


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20


ROWS = {
    row.__name__.replace("_", "-"): row
    for row in (core, healthy, no_op, fresh, words, configuration, class_paths, starts, idle)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=300)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}\n")
    print("| what | figure | baseline | ratio |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.jobs)
        for name in options.only:
            ROWS[name](bench)
    print(f"\nload {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
