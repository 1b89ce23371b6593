"""The process of a Python job, and the zygote that forks it."""
