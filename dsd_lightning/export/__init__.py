"""Export of runs: adapters, other programs' layouts, model cards, the hub."""
