"""How a user's call reaches us: `device=…`, `model.train()`, the `yolo` command, child processes, old versions."""
