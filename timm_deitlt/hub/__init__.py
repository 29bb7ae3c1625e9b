"""Exported models and publishing: read a finished model, check its figures, write its files, put it on the Hub.

`source` reads, `figures` checks, `export` writes, `card` describes, `repository` talks to the Hub, `publish` does all
of this in order. `convert` turns released checkpoints into the same form. Only `cli` imports this room.
"""
