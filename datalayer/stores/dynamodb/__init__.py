"""The DynamoDB stores of presence and typing: one item for each key, each of its own items an attribute, conditional updates."""
