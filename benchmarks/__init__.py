"""Benchmarks: one script per claim; results lie beside the machine they ran on."""
