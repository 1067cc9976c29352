"""One module per on-disk layout; each knows the IR and no other format."""
