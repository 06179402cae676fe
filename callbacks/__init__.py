"""What happens beside the training step: averages, checkpoints, figures. Each is a Lightning callback of its own."""
