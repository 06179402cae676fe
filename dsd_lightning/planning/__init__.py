"""Plans a run before it starts: memory, time, and settings that would fit."""
