"""Tests of the simulated user agents themselves."""
