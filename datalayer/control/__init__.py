"""The control store: epochs, processes, migrations, checkpoints, intents, audit log."""
