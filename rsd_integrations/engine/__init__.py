"""What carries out the work that RSD asks for: executors, and the bridge to sync and async callers."""
