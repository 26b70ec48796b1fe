"""The real engine on simulated stores, under virtual time."""
