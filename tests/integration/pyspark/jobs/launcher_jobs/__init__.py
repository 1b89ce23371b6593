"""Jobs for the launcher's tests: what each does is what its test is about."""
