"""The rows of ``benchmarks/table.py``, and what they measure with."""
