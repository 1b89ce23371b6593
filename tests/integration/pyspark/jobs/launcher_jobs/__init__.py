"""Jobs for the tests of the launcher."""
