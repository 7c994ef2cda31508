"""Train Ultralytics YOLO models on Intel GPUs."""
