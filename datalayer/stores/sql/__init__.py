"""What SQL stores share: statements written once with SQLAlchemy Core, compiled once per dialect."""
