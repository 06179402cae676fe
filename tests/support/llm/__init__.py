"""Helpers of tests that call language models: agents, rehearsals, processes that ask many at once."""
