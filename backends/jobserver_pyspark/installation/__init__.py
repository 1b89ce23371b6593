"""What a context needs on this machine: Java, PySpark, site configuration, compiled JVM parts, archives."""
