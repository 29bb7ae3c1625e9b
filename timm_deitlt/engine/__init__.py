"""The training loop: updates, epochs, progress, checkpoints, the folder of a run, and what is fastest on the machine.

Imports tasks and what they are made of; knows nothing of recipes.
"""
