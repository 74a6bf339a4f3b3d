"""The methods that are compared, and the rivals of SmoothOut."""
