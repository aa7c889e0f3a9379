"""The self-check of a card: can figures that are measured on it be trusted?"""
