"""The command `python generate.py`: its flags, lists of jobs, guidance sheets, and what is written beside the pixels."""
