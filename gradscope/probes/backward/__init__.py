"""What a pass of backward does."""
