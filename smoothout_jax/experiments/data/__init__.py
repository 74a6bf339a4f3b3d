"""Data sets, and readers of the formats they are distributed in."""
