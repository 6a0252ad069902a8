"""What the optimizer remembers: SQLite for records, a content-addressed store for each project's bytes."""
