"""How good is a model? Benchmarks, judges, similarities, figures with intervals, tables and user studies."""
