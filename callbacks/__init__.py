"""What happens beside the training step: averages, checkpoints, metrics. Each is a Lightning callback of its own."""
