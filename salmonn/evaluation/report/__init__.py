"""Results as people read them: pages, tables and pictures."""
