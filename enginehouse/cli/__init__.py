"""The `enginehouse` command. Importing this package loads none of its extras."""
