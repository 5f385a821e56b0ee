"""Tests of `edge.msrp`."""
