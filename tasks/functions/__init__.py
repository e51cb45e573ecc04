"""SQL functions over a loaded engine, for a DuckDB connection."""
