"""What each backend must look like: SQL metadata, migrations, CQL files, index mappings."""
