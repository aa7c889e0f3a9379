"""What is known before a device is touched: shapes, cards, prices, hours, dollars. No torch."""
