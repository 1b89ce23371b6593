"""The host of a context: the process that owns all other processes of the context.

It imports only the standard library, PySpark and py4j, since it runs in the interpreter of the context
(``python.executable``), which may not have the job server installed.
"""
