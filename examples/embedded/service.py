"""A service that embeds the job server: teams submit named reports, and ask for what came of them.

Without Spark it runs Python callables in this process, as here; give ``Reports`` a server made by
``JobServer.from_settings(load_settings("jobserver.conf"))`` and the same lines run on Spark. All reports run
in the context ``warm``, which is there before them: without one, each would start a Spark application.
"""

from jobserver_core import BinaryType, JobRequest, JobServer, JobState


class Reports:
    """Runs reports by name, at most once for each name and day."""

    def __init__(self, server: JobServer, package: bytes) -> None:
        self.server = server
        server.upload("reports", BinaryType.WHEEL, package)

    def request(self, report: str, day: str) -> str:
        """Start a report, or find the one that was started for the day; return its job's id."""
        return self.server.submit(
            JobRequest(
                class_name=f"reports.{report}",
                class_path="reports",
                context="warm",
                config={"day": day},
                idempotency_key=f"{report}/{day}",
            )
        ).id

    async def outcome(self, job_id: str) -> object:
        """Wait for a report without holding a thread; raises JobFailed when the report did."""
        return await self.server.job_handle(job_id)

    def failed(self) -> list[str]:
        """Return the jobs that failed and why."""
        jobs = self.server.jobs().jobs
        return [f"{job.id}: {job.error.message}" for job in jobs if job.state is JobState.ERROR and job.error]
