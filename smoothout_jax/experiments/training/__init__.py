"""Training: the task, the loop, and runs that last, on one device or many."""
