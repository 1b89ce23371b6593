"""An Airflow operator that runs a job on a job server, and a hook that connects to the server.

It is for Airflow 3 and 2, and was tried with 3.3.2.

README.md says how to install it, and count_words.py is a DAG with it.

The result is the task's XCom. A worker that dies while it waits loses nothing: a rerun of the same try finds
the job by its idempotency key. A retry by Airflow is another try, so it is another job. A task that is
cleared or times out kills its job.

The module can be imported without Airflow, so that its logic can be tested without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobserver_client import Client
from jobserver_core import JobAlreadyFinal, JobRequest, ResultTimeout

try:
    from airflow.exceptions import AirflowException

    try:
        from airflow.sdk import BaseHook, BaseOperator
    except ModuleNotFoundError as missing:
        if missing.name != "airflow.sdk":
            raise
        from airflow.hooks.base import BaseHook  # Airflow 2
        from airflow.models import BaseOperator
except ModuleNotFoundError as missing:
    if missing.name != "airflow":
        raise

    # No Airflow: stand-ins with what this module uses of it.

    class AirflowException(Exception):  # type: ignore[no-redef]
        pass

    class BaseHook:  # type: ignore[no-redef]
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            raise AirflowException(f"no connection {conn_id!r} without Airflow")

    class BaseOperator:  # type: ignore[no-redef]
        def __init__(self, *, task_id: str, **_rest: Any) -> None:
            self.task_id = task_id


class JobServerHook(BaseHook):
    """Opens clients for a connection of Airflow."""

    def __init__(self, jobserver_conn_id: str = "jobserver") -> None:
        self.jobserver_conn_id = jobserver_conn_id

    def get_conn(self) -> Client:
        """Return a client. Use it in a ``with`` block."""
        found = self.get_connection(self.jobserver_conn_id)
        port = f":{found.port}" if found.port else ""
        login = (
            {"user": found.login, "password": found.password}
            if found.login
            else {"token": found.password or None}
        )
        return Client(f"{found.schema or 'http'}://{found.host}{port}", user_agent="airflow", **login)


class JobServerOperator(BaseOperator):
    """Runs a job, and returns its result. ``timeout`` is in seconds, None waits as long as Airflow does."""

    template_fields: Sequence[str] = ("class_name", "class_path", "context_name", "config")

    def __init__(
        self,
        *,
        class_name: str,
        class_path: str,
        config: Mapping[str, Any] | str = "",
        context_name: str | None = None,
        timeout: float | None = None,
        jobserver_conn_id: str = "jobserver",
        connect: Callable[[str], Client] = lambda conn_id: JobServerHook(conn_id).get_conn(),
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.class_name = class_name
        self.class_path = class_path
        self.config = config
        self.context_name = context_name
        self.timeout = timeout
        self.jobserver_conn_id = jobserver_conn_id
        self.connect = connect
        self.job_id: str | None = None

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Submit the job, wait for it, and return its result. The result must be JSON."""
        with self.connect(self.jobserver_conn_id) as client:
            handle = client.submit(
                JobRequest(
                    class_name=self.class_name,
                    class_path=self.class_path,
                    config=self.config,
                    context=self.context_name,
                    idempotency_key=_key(context),
                )
            )
            self.job_id = handle.id
            try:
                result = handle.result(self.timeout)
            except ResultTimeout:
                self.on_kill()
                raise
        if isinstance(result, bytes):
            raise AirflowException(f"job {handle.id} has a streamed result, which cannot be an XCom")
        return result

    def on_kill(self) -> None:
        """Kill the job when Airflow ends the task."""
        if self.job_id is not None:
            with self.connect(self.jobserver_conn_id) as client:
                try:
                    client.kill_job(self.job_id, force=True).result(60)
                except JobAlreadyFinal:
                    return


def _key(context: Mapping[str, Any]) -> str:
    """Return the same key for a rerun of the same try, and another for each retry."""
    task = context["ti"]
    return f"airflow/{task.dag_id}/{task.run_id}/{task.task_id}/{task.map_index}/{task.try_number}"[-255:]
