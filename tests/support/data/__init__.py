"""Helpers of tests that write data: shards, folders to pack, strange inputs."""
