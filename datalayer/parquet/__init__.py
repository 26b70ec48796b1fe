"""Parquet files through pyarrow, the extra ``parquet``: the one package that imports it."""
