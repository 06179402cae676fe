"""How a step runs on the hardware: strategies, sharding, gradient checkpointing, precision, compiling."""
