"""The stages of a run, one module each; no stage imports another."""
