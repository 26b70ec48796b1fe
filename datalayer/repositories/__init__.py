"""What services call: typed, asynchronous, intent-named methods; no driver types in or out."""
