"""What happens to a record? One file a stage; no stage knows another."""
