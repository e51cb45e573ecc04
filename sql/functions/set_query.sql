-- Read by the macros, so that a function knows whose rows it is asked about: variables are a connection's own.
SET VARIABLE trunkline_query = $query
