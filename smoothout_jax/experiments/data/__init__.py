"""Data sets: their registry, and readers of the formats they are distributed in."""
