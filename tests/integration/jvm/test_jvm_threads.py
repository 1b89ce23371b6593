"""The JVM keeps nothing of a job whose threads have ended, unless something that the job left needs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobserver_pyspark.jvm import JvmToolchain

pytestmark = pytest.mark.spark

PROGRAM = """
import java.nio.file.Path;
import org.apache.spark.sql.jobserver.JobLog;
import org.apache.spark.sql.jobserver.JobThreads;

public class Groups {
  public static void main(String[] arguments) throws Exception {
    JobThreads last = null;
    for (int i = 0; i < 100; i++) {
      JobThreads job = last = new JobThreads("job-" + i, new JobLog(Path.of(arguments[0]), 1000L));
      Thread thread = new Thread(job, job::release);
      thread.start();
      thread.join();
    }
    System.gc();
    System.out.println(Thread.currentThread().getThreadGroup().activeGroupCount() < 10);
    Thread later = new Thread(last, () -> java.util.concurrent.locks.LockSupport.parkNanos(60_000_000_000L));
    later.start();
    System.out.println(last.members().contains(later));
    later.interrupt();
  }
}
"""


def test_groups_of_ended_jobs_are_forgotten_but_a_pool_of_such_a_job_can_still_start_threads(
    toolchain: JvmToolchain, javac: str, tmp_path: Path
) -> None:
    assert javac  # Java compiles the program before it runs it
    (tmp_path / "Groups.java").write_text(PROGRAM)
    opened = "--add-opens=java.base/java.lang=ALL-UNNAMED"
    class_path = f"{toolchain.runner_jar()}:{toolchain.spark.java_class_path}"
    command = [
        toolchain.java,
        opened,
        "-cp",
        class_path,
        str(tmp_path / "Groups.java"),
        str(tmp_path / "log"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.split() == ["true", "true"], done.stderr
