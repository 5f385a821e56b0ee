"""Tests of the edge server, in folders that mirror the package."""
