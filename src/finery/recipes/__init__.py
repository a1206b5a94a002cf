"""What runs inside a training process: one module, one step.

A recipe is a program: `python -m finery.recipes.NAME --flag value …`.  It gets
paths as flags, writes to the paths given for its outputs, says on stdout what it
does, and ends with 0, 1 (it failed, one line says why) or 2 (the words were
wrong).  It knows nothing of the server; `finery/checkpoint.py` is all it shares.
"""
