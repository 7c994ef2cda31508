"""What the commands that measure share: models, data, trainings that end with a window, and what they are called."""
