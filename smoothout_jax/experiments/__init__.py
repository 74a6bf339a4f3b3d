"""The evidence: the command `smoothout`, which trains, measures and draws.

    smoothout train        one network
    smoothout compare      several methods, from several seeds, on one data set
    smoothout evidence     an experiment of the results page, repeated
    smoothout sharpness    how flat the minima of checkpoints are
    smoothout landscape    the loss around networks, or between two

Needs the extra: `pip install "smoothout-jax[experiments]"`.
"""
