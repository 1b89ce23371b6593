"""A context's requirements: Java, PySpark, site configuration, compiled JVM parts, archives."""
