"""Memory, time, energy and provenance, as they are read while something runs."""
