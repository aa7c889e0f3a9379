"""Measure what PEFT costs and gains against full fine-tuning, and say claim by claim what holds."""

__version__ = "0.1.0"
