"""Settings: their schema, the files they are read from, and the HOCON parser."""
