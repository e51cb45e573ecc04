-- What a database has of its own that a person would miss.
SELECT table_name AS name, 'table' AS kind FROM duckdb_tables() WHERE NOT internal
UNION ALL
SELECT view_name, 'view' FROM duckdb_views() WHERE NOT internal
ORDER BY name
