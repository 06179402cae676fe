"""Turns judgements into estimates with intervals, comparisons of methods, and tables in several formats."""
