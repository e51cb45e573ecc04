-- For a DuckDB of the user's own. The views name their files relative to the folder, so that it can be moved.
ATTACH {database} AS trunkline (READ_ONLY);
SET file_search_path = {folder};
USE trunkline
