"""What runs in the process of a Python job."""
