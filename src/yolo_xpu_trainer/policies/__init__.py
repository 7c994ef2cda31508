"""The built-in policies: one a file, each a pluggy plugin that the entry-point group `yolo_xpu_trainer` names."""
