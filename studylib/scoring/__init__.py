"""Asking a model questions: tasks, log-likelihoods, shared prefixes."""
