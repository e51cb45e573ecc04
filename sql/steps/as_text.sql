CAST({column} AS VARCHAR) AS {column}
