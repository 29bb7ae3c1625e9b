"""The training loop: updates, epochs, progress, checkpoints, the folder of a run, and the fastest options of a machine.

It may import tasks and the rooms below them. It does not know recipes.
"""
