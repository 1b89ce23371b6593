"""What runs in a context's own processes: the host, its zygote, and the runners of Python jobs.

Nothing here imports more than the standard library, PySpark and py4j, since it runs in the
interpreter of the context (``python.executable``), which need not have the job server installed.
"""
