"""Runs `python generate.py story`: writes a story around an image and generates it as a comic page."""
