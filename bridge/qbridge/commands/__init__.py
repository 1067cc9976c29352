"""What one can ask: open, convert, stream, restore, verify, check, inspect, and their reports."""
