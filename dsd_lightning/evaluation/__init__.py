"""Scores models: benchmarks, judges, similarities, estimates with intervals, tables and user studies."""
