"""Products that break one promise each, to see that the suites notice."""
