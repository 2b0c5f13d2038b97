"""A run is a folder: durable writes, the one writer, its lock, what a reader sees, and where progress is shown. No torch."""
