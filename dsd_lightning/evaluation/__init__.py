"""How good is a model? Benchmarks, judges, similarities, metrics with intervals, tables and user studies."""
