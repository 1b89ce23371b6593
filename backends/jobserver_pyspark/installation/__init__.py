"""What a context needs of this machine: Java, PySpark, site configuration, compiled JVM parts, archives."""
