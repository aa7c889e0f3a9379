"""What a variant costs to serve: footprint, latency, hot-swap, mixed batches."""
