-- A source's query is put behind this, once it is known to be a single SELECT.
CREATE TEMP VIEW trunkline_source AS
