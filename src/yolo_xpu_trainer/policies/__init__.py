"""What is done to a run: one complete feature a file or folder, with its option, hooks, patches and helpers.

Each module is a pluggy plugin, found by itself and named as its file. One that also declares `PATCHES` which hold for
the whole process stands in the tuple of `activation.py`.
"""
