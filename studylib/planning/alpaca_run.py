"""The Alpaca-style run that the article prices, as tokens: what every cost of it is reckoned from.

Not covered: how fast a card takes them in (studylib.planning.roofline, or a record).
"""

EXAMPLES = 52_002 * 3  # Stanford Alpaca's examples, three epochs
# A mean of 127.5 tokens with the Alpaca prompt and Llama-2's tokenizer, or 512 when padded.
TOKENS = {"packed": int(EXAMPLES * 127.5), "padded": EXAMPLES * 512}
