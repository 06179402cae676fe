"""Measures the paper's claims on the miniature: steps, results, and the table of claims."""
