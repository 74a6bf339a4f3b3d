"""Results as a reader sees them: tables, figures, statistics and provenance."""
