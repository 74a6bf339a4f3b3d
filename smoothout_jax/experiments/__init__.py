"""The evidence: the `smoothout` command, which trains, measures and shows.

    smoothout train        one network
    smoothout compare      several methods, from several seeds, on one data set
    smoothout evidence     an experiment of the results page, once more
    smoothout sharpness    how flat the minima of checkpoints are
    smoothout landscape    the loss around networks, or between two

Needs the extra: `pip install "smoothout-jax[experiments]"`.
"""
