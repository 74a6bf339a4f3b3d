"""Makers of the pages of the documentation whose figures come from results."""
