"""Following a run live: what is told to TensorBoard, trackio and W&B (`track:` in a config)."""
