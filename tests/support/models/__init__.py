"""Helpers of tests that build models: toy models, the laws' rows, known arithmetic, several devices."""
