"""Results as a reader sees them."""
