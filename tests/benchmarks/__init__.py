"""Plain Ultralytics and ours side by side, counted on the simulated XPU."""
