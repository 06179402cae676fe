"""What the commands share: how errors are reported, and a tidy console."""
