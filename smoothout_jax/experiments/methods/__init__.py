"""The methods that are compared: their table, and the rivals of SmoothOut."""
