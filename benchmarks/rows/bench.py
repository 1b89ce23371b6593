"""What the rows share: a directory, a server with jobs in Python and on the JVM, and stock PySpark."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobserver_pyspark.demo import build_wheel
from rows.figures import RowError
from rows.server import PROGRAM, Client, Server

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


class Pandas(Nothing):
    def run_job(self, context, runtime, data):
        import pandas
        return len(pandas.DataFrame({"number": [1, 2, 3]}))
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


CALL = """
import timeit
print(min(timeit.repeat(lambda: None, number=100000, repeat=3)) / 100000)
"""


WORDS = "input.string = a b c a b see"


class Bench:
    """Shared by the rows: a directory, a server, the jobs, and stock PySpark."""

    def __init__(self, directory: Path, jobs: int) -> None:
        self.directory = directory
        self.jobs = jobs
        self._prepared = False
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
            done = subprocess.run([PROGRAM, "jvm-api"], capture_output=True, text=True, check=True)
            path = done.stdout.strip()
            compiler = ["java", "-cp", path.split(":")[-1], "scala.tools.nsc.Main", "-nowarn"]
            subprocess.run([*compiler, "-d", str(classes), "-classpath", path, str(source)], check=True)
            with zipfile.ZipFile(target, "w") as archive:
                for each in sorted(classes.rglob("*.class")):
                    archive.write(each, each.relative_to(classes))
        return target

    def prepare(self) -> None:
        """Make the archive of classes, which a server would make in the background of the measurements."""
        if not self._prepared:
            subprocess.run([PROGRAM, "prepare"], check=True, stdout=subprocess.DEVNULL)
            self._prepared = True

    @contextmanager
    def server(
        self, settings: str = "", context: str = "", *, warm: bool = True, jvm: bool = False
    ) -> Iterator[Server]:
        """Start a server with the Python jobs, with the JVM jobs, and with the context ``warm`` ready."""
        self.prepare()
        jar = self.jar().read_bytes() if jvm else b""
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        server = Server(directory, settings)
        try:
            client = Client(server.port)
            client.call("POST", "/binaries/py", self.wheel.read_bytes(), "application/python-wheel")
            if jvm:
                client.call("POST", "/binaries/jvm", jar, "application/java-archive")
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
            raise RowError(done.stderr)
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
        program = str(Path(__file__).parent.with_name("inline_server.py"))
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
